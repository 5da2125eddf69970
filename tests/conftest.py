"""Options shared by all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A machine that does something else meanwhile is no fault of the code
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")
REPOSITORY = Path(__file__).resolve().parents[1]
OF_RANKS = (
    "tests.bench.faults.",
    "tests.distributed.",
    "tests.recsys.distill.",
    "tests.recsys.training.",
)
WARM = "tests.support.warm"
LONGEST = {"test_pipeline.py", "test_stream.py"}
# Modules whose functions start ranks or other processes, or run a whole stage
STARTERS = {
    "recsys.training.launch",
    "recsys.distill.teacher",
    "recsys.distill.students",
    "recsys.distill.tuning",
    "tests.support.agents",
    "tests.support.killing",
    "tests.support.launches",
    "tests.support.projects",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-logs",
        default=str(REPOSITORY.parent / "shared" / "data"),
        help="folder with ebnerd_demo and globo_clicks; without it tests of real logs skip",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark ``ranks`` what starts processes or trains a teacher or students; ``make test-fast``
    leaves it out."""
    for item in items:
        if isinstance(item, pytest.Function) and item.module is not None and _starts(item):
            item.add_marker(pytest.mark.ranks)
    items.sort(key=lambda item: item.path.name not in LONGEST)  # or one worker ends alone with them


def _starts(item: pytest.Function) -> bool:
    """Whether the test's folder or its module's imports say so."""
    if item.path.is_relative_to(REPOSITORY / "tests" / "distributed"):
        return True
    origins = {getattr(value, "__module__", None) for value in vars(item.module).values()}
    return not origins.isdisjoint(STARTERS)


@pytest.fixture(scope="session", autouse=True)
def _ranks_start_from_a_server(request: pytest.FixtureRequest) -> None:
    """What ranks are forked from imports beforehand what the collected tests of ranks import."""
    launch = sys.modules.get("recsys.training.launch")
    if launch is not None:
        names = {
            item.module.__name__
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.module is not None
        }
        of_ranks = sorted(name for name in names if name.startswith(OF_RANKS))
        launch.start_server("pytest", *of_ranks, WARM)


@pytest.fixture(autouse=True)
def _no_rank_is_left_in_this_process() -> Iterator[None]:
    """An engine outside of any launch makes this process a rank for good, and later tests train in
    its group, where libraries' warnings are errors."""
    yield
    distributed = sys.modules.get("torch.distributed")
    assert distributed is None or not distributed.is_initialized(), (
        "the test has made an engine in pytest's own process; call it by recsys.training.launch"
    )


@pytest.fixture(scope="session")
def real_logs(request: pytest.FixtureRequest) -> Path:
    """The folder of the real logs; skips the test if there is none."""
    folder = Path(str(request.config.getoption("--real-logs")))
    if not folder.is_dir():
        pytest.skip(f"no real logs in {folder}; give their folder by --real-logs")
    return folder


@pytest.fixture(scope="module")
def windows_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The windows of :mod:`tests.support.toy_stream`."""
    from tests.support.toy_stream import write_windows  # torch, which not every test needs

    folder = tmp_path_factory.mktemp("windows")
    write_windows(folder)
    return folder
