"""The server answers as the library does, names what is wrong with a body, and changes models
without losing a request."""

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from recsys.config import InputError
from recsys.serving.predictor import Predictor
from recsys.serving.server import create_app, folder_source
from recsys.serving.settings import ServeSettings
from tests.support.exports import ROW, toy_export

SETTINGS = ServeSettings(largest_body_mb=0.01, largest_batch=100, poll_seconds=0.02)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students of other weights."""
    folder = tmp_path_factory.mktemp("exports")
    for seed in (1, 2):
        toy_export(folder / str(seed), seed)
    return folder


@pytest.fixture(scope="module")
def client(exports: Path) -> Iterator[TestClient]:
    with TestClient(create_app(folder_source(exports / "1"), SETTINGS)) as found:
        yield found


def test_an_answer_is_the_librarys(client: TestClient, exports: Path) -> None:
    rows = [ROW, {"user": "new", "ad": 1, "site": "feed"}]
    found = client.post("/predict", json={"rows": rows})
    expected = Predictor.load(exports / "1").predict(rows)
    assert found.status_code == 200
    assert found.json()["probabilities"] == {"click": expected.tolist()}
    many = client.post("/predict", json={"rows": rows[1:] * 100}).json()
    assert many["probabilities"]["click"] == pytest.approx([expected[1]] * 100)


def test_columns_are_answered_as_rows_are(client: TestClient) -> None:
    rows = [{"user": f"u{place}", "ad": place % 3, "price": place / 7} for place in range(40)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    found = client.post("/predict", json={"columns": columns})
    assert found.status_code == 200
    assert found.json() == client.post("/predict", json={"rows": rows}).json()


def test_candidates_are_ranked_as_rows_are_predicted(client: TestClient, exports: Path) -> None:
    shared = {"user": "u1", "tags": ["a"], "price": 1.5}
    candidates = [{"ad": ad} for ad in range(5)]
    found = client.post("/rank", json={"shared": shared, "candidates": candidates}).json()
    expected = Predictor.load(exports / "1").predict([shared | one for one in candidates])
    assert found["probabilities"]["click"] == pytest.approx(expected, abs=1e-7)
    assert found["order"] == sorted(range(5), key=lambda place: -expected[place])
    one_lacks = client.post("/rank", json={"shared": {"user": "u1"}, "candidates": [{"ad": 1}, {}]})
    assert one_lacks.status_code == 422 and "row 1: column 'ad' is missing" in one_lacks.text
    both = client.post("/rank", json={"shared": {"ad": 1, "user": "u"}, "candidates": candidates})
    assert both.status_code == 422 and "'ad' is given for all and for each" in both.text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b'{"rows": [{"price": NaN}]}', 400, "the body is not JSON"),
        (b'{"rows": [{"price": 1e999, "user": "u", "ad": 1}]}', 400, "infinity"),
        (b"[" * 5000, 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[]", 422, "the body is not a JSON object"),
        (b"{}", 422, "'rows' is missing or not a list of objects"),
        (b'{"rows": {}}', 422, "'rows' is missing or not a list of objects"),
        (b'{"rows": [1]}', 422, "'rows' is missing or not a list of objects"),
        (b'{"rows": []}', 422, "'rows' is empty"),
        (b'{"row": []}', 422, "unknown key 'row'; did you mean 'rows'"),
        (b'{"rows": [{"user": "u"}]}', 422, "column 'ad' is missing"),
        (
            b'{"rows": [{"user": "u", "ad": 1}, {"user": "u"}]}',
            422,
            "row 1: column 'ad' is missing",
        ),
        (b'{"rows": [{"usr": "u", "ad": 1}]}', 422, "unknown column 'usr'; did you mean 'user'"),
        (b'{"rows": [{"user": "u", "ad": 1, "price": "x"}]}', 422, "'price' holds 'x'"),
        (b'{"rows": [{"user": "u", "ad": 1, "price": [1]}]}', 422, "'price' holds list"),
        (b'{"rows": [{"user": ["u"], "ad": 1}]}', 422, "'user' holds a list"),
        (b'{"rows": [{"user": {"u": 1}, "ad": 1}]}', 422, "'user' holds dict"),
        (b'{"rows": [{"user": "u", "ad": 1, "tags": 5}]}', 422, "'tags' holds int; expected lists"),
        (b'{"rows": [{"user": "u", "ad": 1, "tags": [[1]]}]}', 422, "'tags' holds a list"),
        (b'{"rows": [{"user": "u", "ad": 1, "site": "v"}]}', 422, "this model serves feed"),
        (b'{"rows": [{"user": "u", "ad": 1, "site": 9}]}', 422, "'site' holds 9"),
        (b'{"rows": [{"user": "u", "ad": 1, "site": {}}]}', 422, "'site' holds dict"),
        (b'{"rows": [' + b"{}," * 100 + b"{}]}", 413, "'rows' has 101; at most 100"),
        (b" " * 20_000, 413, "the body is larger than"),
        (b'{"columns": []}', 422, "'columns' is not an object of lists"),
        (b'{"columns": {"user": "u"}}', 422, "'columns' is not an object of lists"),
        (b'{"columns": {}}', 422, "'columns' is empty"),
        (b'{"columns": {"user": [], "ad": []}}', 422, "'columns' is empty"),
        (b'{"columns": {"user": ["u"]}, "rows": []}', 422, "give one"),
        (b'{"columns": {"user": ["u"]}}', 422, "column 'ad' is missing"),
        (b'{"columns": {"user": ["u"], "ad": [1, 2]}}', 422, "columns differ in length: 1, 2"),
        (b'{"columns": {"usr": ["u"], "ad": [1]}}', 422, "unknown column 'usr'"),
        (b'{"columns": {"user": [{}], "ad": [1]}}', 422, "'user' holds dict"),
        (b'{"columns": {"ad": [' + b"1," * 100 + b"1]}}", 413, "'columns' has 101 rows"),
    ],
)
def test_a_bad_body_is_named(client: TestClient, body: bytes, status: int, message: str) -> None:
    found = client.post("/predict", content=body)
    assert (found.status_code, found.headers["content-type"]) == (status, "application/json")
    assert message in found.json()["error"] and "\n" not in found.json()["error"]
    assert client.post("/predict", json={"rows": [ROW]}).status_code == 200


def test_a_body_without_a_length_is_bounded_too(client: TestClient) -> None:
    found = client.post("/predict", content=(b" " * 1000 for _ in range(50)))
    assert found.status_code == 413


def test_health_metrics_and_the_example_of_openapi(client: TestClient, exports: Path) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["domain"] == "feed" and health["tasks"] == ["click"]
    assert health["columns"]["user"] == {"type": "text", "list": False, "required": True}
    assert 'requests_total{path="/predict",status="200"}' in client.get("/metrics").text
    paths = client.get("/openapi.json").json()["paths"]
    content = paths["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"]["properties"]["rows"]["items"]["required"] == ["user", "ad"]
    assert content["example"]["rows"][0]["user"] == "u1"
    assert client.post("/predict", json=content["example"]).status_code == 200


def test_a_new_model_is_taken_without_losing_a_request(exports: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exports / "1", folder)
    old, new = (Predictor.load(exports / str(one)).predict([ROW])[0] for one in (1, 2))
    statuses: list[int] = []
    answers: list[tuple[str, float]] = []

    def ask(client: TestClient) -> None:
        while not done.is_set():
            found: Any = client.post("/predict", json={"rows": [ROW]})
            statuses.append(found.status_code)
            answers.append((found.json()["model"], found.json()["probabilities"]["click"][0]))

    done = threading.Event()
    with TestClient(create_app(folder_source(folder), SETTINGS)) as client:
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        try:
            first = client.get("/health").json()["model"]
            damaged = shutil.copytree(exports / "2", tmp_path / "damaged")
            (damaged / "network.onnx").write_bytes(b"half")
            replace(damaged, folder)
            wait_for(client, "model_failures_total [1-9]")
            assert client.get("/health").json()["model"] == first
            replace(shutil.copytree(exports / "2", tmp_path / "new"), folder)
            wait_for(client, "model_switches_total 1")
            answered = len(answers)
            while len(answers) < answered + 2:
                done.wait(0.01)
        finally:
            done.set()
            asking.join()
    assert set(statuses) == {200} and len(answers) > 2
    assert dict(answers) == {
        first: pytest.approx(old),
        answers[-1][0]: pytest.approx(new),
    }


def replace(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target``."""
    target.rename(target.with_name(f"old-{source.name}"))
    source.rename(target)


def wait_for(client: TestClient, line: str) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if re.search(line, client.get("/metrics").text):
            return
        pause.wait(0.01)
    raise AssertionError(f"{line} is not in the metrics:\n{client.get('/metrics').text}")


def test_a_server_without_a_model_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the export folder of a student"):
        create_app(folder_source(tmp_path), SETTINGS)
