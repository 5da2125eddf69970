"""Prefect's server of one run."""

import asyncio
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from starlette.responses import Response
from starlette.routing import Route

from tasks.temporary_server import RETRY_SECONDS, app, starting


def busy(request: Any) -> Response:
    return Response(status_code=503)


async def asked(served: Any, *paths: str) -> list[httpx.Response]:
    transport = httpx.ASGITransport(served)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        return [await client.get(path) for path in paths]


def test_a_client_whose_write_met_another_one_is_asked_to_come_again_soon() -> None:
    """Prefect's client waits for two seconds otherwise."""
    served = app()
    served.router.routes.insert(0, Route("/busy", busy))
    answers = asyncio.run(asked(served, "/busy", "/none"))  # without its database
    assert float(answers[0].headers["Retry-After"]) == RETRY_SECONDS < 1
    assert "Retry-After" not in answers[1].headers


def test_none_is_started_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), starting():
        pass
