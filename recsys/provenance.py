"""The code and libraries behind a result."""

import ast
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec, resolve_name
from pathlib import Path

import recsys
from recsys.config import InputError

LIBRARY = "recsys"
HOME = Path(recsys.__file__).parents[1]


@dataclass(frozen=True)
class Code:
    """Everything that decides what some modules compute.

    Attributes:
        modules: hashes by name of these modules and of all that they import, directly or
            indirectly. Comments, docstrings and formatting do not count.
        libraries: versions of the installed distributions that these modules import.
    """

    modules: dict[str, str]
    libraries: dict[str, str]


@dataclass(frozen=True)
class _Source:
    """A module's hash, and what it may import, as (level of a relative import, dotted name)."""

    digest: str
    imports: frozenset[tuple[int, str]]


def code_of(
    *roots: str,
    callers: Collection[str] = (),
    without: Collection[str] = (),
    folder: Path = HOME,
) -> Code:
    """The code that the modules ``roots`` run, found without importing it.

    Imports inside functions count, those under ``if TYPE_CHECKING`` do not. A module is followed if
    its package is that of a root, recsys or one of ``callers``.

    Args:
        callers: packages that call the library; distributions that only they import do not count.
        without: modules that do not affect results; they, and what only they import, do not count.
        folder: where to look for packages before ``sys.path``.

    Raises:
        InputError: a root does not exist, or a file is not valid Python.
    """
    homes = _homes({_top(root) for root in roots} | {LIBRARY, *callers}, folder)
    for root in roots:
        if _file(root, homes) is None:
            raise InputError(f"no module {root!r} in {folder.resolve()} or on Python's path")
    modules: dict[str, str] = {}
    libraries: set[str] = set()
    seen, waiting = {*roots, *without}, list(roots)
    while waiting:
        name = waiting.pop()
        path = _file(name, homes)
        if path is None:  # a folder without __init__.py, or a name defined in a module
            continue
        source = _parsed(path, path.read_bytes())
        modules[name] = source.digest
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported = {resolve_name("." * level + to, package) for level, to in source.imports}
        own = {one for one in {name, *imported} if _top(one) in homes}
        new = {longer for one in own for longer in _with_packages(one)} - seen
        seen |= new
        waiting += new
        if _top(name) not in callers:
            libraries |= {_top(one) for one in imported - own}
    return Code(dict(sorted(modules.items())), _versions(libraries))


def modules_named(*references: str | None) -> list[str]:
    """The modules in references such as ``package.module:Class``; other texts are ignored."""
    return [one.partition(":")[0] for one in references if one is not None and ":" in one]


def file_of(module: str, folder: Path = HOME) -> Path | None:
    """A module's file, looked up in ``folder``, then on ``sys.path``; None if there is none."""
    return _file(module, _homes({_top(module)}, folder))


def _top(module: str) -> str:
    return module.partition(".")[0]


def _with_packages(module: str) -> list[str]:
    """``a.b.c`` as a, a.b and a.b.c: importing one runs them all."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _homes(packages: Iterable[str], folder: Path) -> dict[str, Path]:
    """The folder that contains each top-level package or module; those not found are left out."""
    homes = {}
    for package in packages:
        spec = PathFinder.find_spec(package, [str(folder)]) or find_spec(package)
        if spec is None:
            continue
        if spec.submodule_search_locations:
            homes[package] = Path(next(iter(spec.submodule_search_locations))).parent
        elif spec.origin is not None:
            homes[package] = Path(spec.origin).parent
    return homes


def _file(module: str, homes: dict[str, Path]) -> Path | None:
    home = homes.get(_top(module))
    if home is None:
        return None
    stem = f"{home}/{module.replace('.', '/')}"
    files = (Path(f"{stem}/__init__.py"), Path(f"{stem}.py"))
    return next((file for file in files if file.is_file()), None)


@cache
def _parsed(path: Path, content: bytes) -> _Source:
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: not Python: {error.msg}") from error
    collector = _Imports()
    collector.visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [one for one in node.body if not _is_text(one)]
    digest = hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()
    return _Source(digest, frozenset(collector.found))


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is just a string, such as a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


class _Imports(ast.NodeVisitor):
    """Collects what a module may import."""

    def __init__(self) -> None:
        self.found: set[tuple[int, str]] = set()

    def visit_If(self, node: ast.If) -> None:
        """Skip ``if TYPE_CHECKING``, which only type checkers enter."""
        tested = node.test.attr if isinstance(node.test, ast.Attribute) else node.test
        tested = tested.id if isinstance(tested, ast.Name) else tested
        for child in node.orelse if tested == "TYPE_CHECKING" else [*node.body, *node.orelse]:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        """``import a.b``."""
        self.found |= {(0, alias.name) for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """``from a import b``, where b may be a module."""
        module = node.module or ""
        self.found |= {(node.level, f"{module}.{alias.name}".lstrip(".")) for alias in node.names}


def _versions(imported: Iterable[str]) -> dict[str, str]:
    """The version of each distribution that provides one of the ``imported`` names."""
    installed = _installed()
    found = {_named(one) for name in imported for one in installed.get(name, ())}
    return {name.lower().replace("_", "-"): version for name, version in sorted(found)}


@cache
def _installed() -> dict[str, list[Distribution]]:
    """The distributions that provide each top-level name, like
    ``importlib.metadata.packages_distributions``, but without building a path for every file, which
    takes most of that function's time."""
    found: dict[str, list[Distribution]] = {}
    for one in distributions():
        files = (line.partition(",")[0] for line in (one.read_text("RECORD") or "").splitlines())
        declared = (one.read_text("top_level.txt") or "").split()
        for name in declared or {
            file.partition("/")[0].removesuffix(".py") for file in files if file.endswith(".py")
        }:
            found.setdefault(name, []).append(one)
    return found


@cache
def _named(distribution: Distribution) -> tuple[str, str]:
    """Name and version, read once: each access parses the metadata again."""
    return distribution.metadata["Name"], distribution.version
