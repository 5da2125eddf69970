"""Options shared by all tests."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-logs",
        default=str(REPOSITORY.parent / "shared" / "data"),
        help="folder with ebnerd_demo and globo_clicks; tests of real logs skip where it is not there",
    )


@pytest.fixture(scope="session")
def real_logs(request: pytest.FixtureRequest) -> Path:
    """The folder of the real logs; skips the test if there is none."""
    folder = Path(str(request.config.getoption("--real-logs")))
    if not folder.is_dir():
        pytest.skip(f"no real logs in {folder}; give their folder by --real-logs")
    return folder
