"""What a process that is started as a rank is told to import of the program that starts it."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.spawn import get_preparation_data
from operator import add

import pytest

from recsys.training.launch import main_module_stays_here

MAIN = sys.modules["__main__"]
KEYS = {"init_main_from_name", "init_main_from_path"}


def told() -> set[str]:
    return KEYS & get_preparation_data("rank").keys()


@pytest.fixture
def own_function(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function of the program's main module."""

    def function() -> None: ...

    function.__module__, function.__qualname__ = "__main__", "function"
    monkeypatch.setattr(MAIN, "function", function, raising=False)
    return function


@pytest.fixture(params=["by name", "by path"])
def _program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A main module that ``python -m`` has started, or that is a script."""
    by_name = request.param == "by name"
    monkeypatch.setattr(MAIN, "__spec__", find_spec("recsys.files") if by_name else None)
    monkeypatch.setattr(MAIN, "__file__", "/tmp/script.py", raising=False)


@pytest.mark.usefixtures("_program")
def test_nothing_where_the_function_is_a_librarys_and_all_is_as_before_afterwards() -> None:
    before = MAIN.__spec__, MAIN.__file__, get_preparation_data("rank")
    with main_module_stays_here(add, (1, 2)):
        assert told() == set()
    assert (MAIN.__spec__, MAIN.__file__, get_preparation_data("rank")) == before
    assert told()


@pytest.mark.usefixtures("_program")
@pytest.mark.parametrize("as_argument", [False, True])
def test_the_main_module_where_what_is_sent_has_something_of_it(
    own_function: Callable[[], None], as_argument: bool
) -> None:
    sent = (add, (own_function,)) if as_argument else (own_function, ())
    with main_module_stays_here(*sent):
        assert told()


@pytest.mark.usefixtures("_program")
def test_it_comes_back_after_an_error() -> None:
    with pytest.raises(KeyError), main_module_stays_here(add, ()):
        raise KeyError
    assert told()
