# The server of one export, and no more: no torch, no Prefect, no MLflow, no data.
#
#     docker build --build-arg EXPORT=models/students/feed/distilled/export --tag feed .
#     docker run --read-only --publish 127.0.0.1:8000:8000 feed
#
# `python -m bench.serving.container` takes these steps without Docker.
FROM python:3.11.13-slim-bookworm

RUN useradd --uid 10001 --no-create-home towerflow
WORKDIR /app
ENV PYTHONUNBUFFERED=1
COPY requirements/serving.lock requirements/serving.lock
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/serving.lock
COPY recsys recsys
COPY flows/__init__.py flows/command_line.py flows/serve.py flows/stopping.py flows/
ARG EXPORT
COPY ${EXPORT} model

USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=10s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "flows.serve", "model/", "--host", "0.0.0.0"]
CMD ["--port", "8000"]
