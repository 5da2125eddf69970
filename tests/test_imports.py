"""Tests import no tests: what they share lies in tests/support and in conftest files."""

import ast
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
