"""What importing the tests may do: no test imports another, and none starts threads that ranks are
forked beside."""

import ast
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def imported(source: str) -> list[str]:
    """Every module, and every name of a module, that ``source`` imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return found


def of_tests(source: str) -> list[str]:
    """The modules of tests among them."""
    parts = (name.split(".") for name in imported(source))
    return [
        ".".join(one)
        for one in parts
        if one[0] == "tests" and any(part.startswith(("test_", "conftest")) for part in one)
    ]


def test_no_module_of_the_tests_imports_a_test_module() -> None:
    assert of_tests("from tests.recsys.data.test_sources import LOG") == [
        "tests.recsys.data.test_sources.LOG"
    ]
    assert of_tests("def f():\n    import tests.test_stream") == ["tests.test_stream"]
    found = {
        path.relative_to(TESTS).as_posix(): modules
        for path in sorted(TESTS.rglob("*.py"))
        if (modules := of_tests(path.read_text()))
    }
    assert found == {}


# Prints the names of the threads after the import of the modules that it is given
THREADS = """
import importlib, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
folder = "/proc/self/task"
print(*(open(f"{folder}/{task}/comm").read().strip() for task in os.listdir(folder)))
"""


def test_importing_the_tests_of_ranks_starts_no_pool_of_polars() -> None:
    """Ranks are forked from a process that has imported them: a pool's threads stay behind there,
    and the rank's first query would wait for them for ever."""
    names = [
        ".".join(path.relative_to(TESTS.parent).with_suffix("").parts)
        for folder in ("distributed", "recsys/distill", "recsys/training")
        for path in sorted((TESTS / folder).glob("test_*.py"))
    ]
    command = [sys.executable, "-c", THREADS, *names]
    threads = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert "python" in threads.stdout
    assert "polars-0" not in threads.stdout.split()
