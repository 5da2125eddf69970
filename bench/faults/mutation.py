"""Faults put into the library by a mutation tester: do the tests beside a file see them?

    pip install --no-deps --target /tmp/cosmic cosmic-ray==8.7.0 parso stevedore decorator \\
        exit-codes attrs gitpython yattag anybadge toml
    PYTHONPATH=$PWD:/tmp/cosmic python -m bench.faults.mutation --work /tmp/mutants --sample 40

Cosmic Ray's operators make all mutants of each package; a seeded sample of them is tried, each in a
copy of the project and a process forked from one that has imported the libraries. Only the tests of
the mirrored folder that run the changed statement are asked, as a measurement of coverage says;
then, with ``--ranks``, those there and in tests/distributed that start processes, which cannot be
measured: first those that name the module. Goes on where the last call stopped; ``--again`` asks
anew about those that were not killed.
"""

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

PACKAGES = ("distill", "towers", "sharding", "training", "data", "evaluation")
COPIED = (
    "flows",
    "tasks",
    "recsys",
    "tests",
    "bench",
    "params",
    "docs",
    "pyproject.toml",
    "dvc.yaml",
)
RESULT_FILE, OUTPUT_FILE = "mutants.jsonl", "output.txt"
CPU_SECONDS, WALL_SECONDS = 900, 900  # of a package's tests; a mutant's may be endless
SPARE_SECONDS = 30
NONE_COLLECTED = 5  # pytest's exit status
KILLED, SURVIVED, NO_TEST = "killed", "survived", "no test"
QUICK, OF_RANKS = "not slow and not ranks", "ranks"
Runners = dict[str, dict[int, set[str]]]  # test files by the lines that they run, by file
WARM = ("torch", "torchrec", "polars", "pandas", "hypothesis", "pydantic", "scipy.stats", "psutil")


@dataclass(frozen=True)
class Mutant:
    """One change of a file: Cosmic Ray's operator and which of the places where it applies."""

    path: str
    operator: str
    occurrence: int
    line: int

    @property
    def package(self) -> str:
        """Its folder of recsys."""
        return Path(self.path).parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for copies and results")
    parser.add_argument("--sample", type=int, default=40, help="mutants per package")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, choices=PACKAGES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--ranks", action="store_true", help="survivors meet the tests of ranks")
    parser.add_argument("--again", action="store_true", help="ask anew about those not killed")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    known = results(options.work)
    free: Queue[Path] = Queue()
    for number in range(options.at_once):
        free.put(copy_of_the_project(options.work / f"copy-{number}"))
    samples = [sample(package, options.sample, options.seed) for package in options.packages]
    warm_up()
    broken = failing(copy_of_the_project(options.work / "measured")) if options.ranks else []
    runners, seconds = {}, {}
    for package in options.packages:
        runners[package], seconds[package] = measured(package, options.work)

    def one(mutant: Mutant) -> None:
        done = known.get(mutant)
        if time.monotonic() > end or (done is not None and (done == KILLED or not options.again)):
            return
        copy = free.get()
        try:
            bound = seconds[mutant.package]
            tests = tests_of_ranks(Path(mutant.path)) if options.ranks else []
            found = verdict(mutant, copy, runners[mutant.package], bound, tests, broken)
        finally:
            free.put(copy)
        with (options.work / RESULT_FILE).open("a") as file:
            file.write(json.dumps({**asdict(mutant), "verdict": found}) + "\n")
        print(f"{found}: {mutant.path}:{mutant.line} {mutant.operator}", flush=True)

    with ThreadPoolExecutor(options.at_once) as pool:
        # One of each package after the other: a call that is stopped leaves samples of like size
        for group in zip(*samples, strict=False):
            for mutant in group:
                pool.submit(one, mutant)
    print("\n".join(table(results(options.work))))


def sample(package: str, size: int, seed: int) -> list[Mutant]:
    """A seeded sample of the mutants of a package."""
    mutants = [one for path in sorted(Path("recsys", package).rglob("*.py")) for one in of(path)]
    random.Random(seed).shuffle(mutants)
    chosen: list[Mutant] = []
    for mutant in mutants:
        if len(chosen) == size:
            break
        if changes_more_than_annotations(mutant):
            chosen.append(mutant)
    return chosen


def of(path: Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path  # pyright: ignore[reportMissingImports]
    from cosmic_ray.plugins import get_operator, operator_names  # pyright: ignore[reportMissingImports]

    tree = get_ast_from_path(path)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():
            continue
        places = (
            start for node in ast_nodes(tree) for start, _ in operator().mutation_positions(node)
        )
        for occurrence, (line, _) in enumerate(places):
            yield Mutant(path.as_posix(), name, occurrence, line)


def mutated(mutant: Mutant) -> str:
    """The file's source with the change."""
    from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
    from cosmic_ray.plugins import get_operator  # pyright: ignore[reportMissingImports]

    operator = get_operator(mutant.operator)()
    source = mutate_code(Path(mutant.path).read_text(), operator, mutant.occurrence)
    assert source is not None
    return source


def changes_more_than_annotations(mutant: Mutant) -> bool:
    """Whether something that runs differs: not a type, which nothing tests but the type checker,
    and not a source that is no longer Python (operators do not know ``{**values}``)."""
    try:
        return _code(mutated(mutant)) != _code(Path(mutant.path).read_text())
    except SyntaxError:
        return False


def _code(source: str) -> str:
    """The source without its annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def measured(package: str, work: Path) -> tuple[Runners, float]:
    """Which tests of the package's mirrored folder run which lines, with no mutant there, and the
    CPU seconds that all of them take.

    Raises:
        RuntimeError: they do not pass.
    """
    from coverage import CoverageData

    copy, data = copy_of_the_project(work / "measured"), work.resolve() / f"{package}.coverage"
    os.environ["COVERAGE_FILE"] = str(data)
    try:
        options = ["--cov=recsys", "--cov-context=test", "--cov-report=", "--cov-fail-under=0"]
        tests = [f"tests/recsys/{package}"]
        status, seconds = tried(copy, tests, QUICK, options, CPU_SECONDS)
        if status:
            raise RuntimeError(f"{copy}: the tests of {package} fail; see {OUTPUT_FILE} there")
    finally:
        del os.environ["COVERAGE_FILE"]
    read = CoverageData(str(data))
    read.read()
    runners = {
        Path(file).relative_to(copy).as_posix(): {
            line: {context.partition("::")[0] for context in contexts}
            for line, contexts in read.contexts_by_lineno(file).items()
        }
        for file in read.measured_files()
    }
    return runners, seconds


def tests_of(mutant: Mutant, runners: Runners) -> list[str]:
    """The test files that run the changed statement; the module's, where it is run by an import."""
    lines = runners.get(mutant.path, {})
    changed = statement(ast.parse(Path(mutant.path).read_text()), mutant.line)
    found = set[str]().union(*(lines.get(line, set()) for line in changed))
    if "" in found:
        found = set[str]().union(*lines.values())
    return sorted(found - {""})


def statement(tree: ast.AST, line: int) -> range:
    """The lines of the smallest statement around ``line``; of a compound one its head alone."""
    best = range(line, line + 1)
    smallest = sys.maxsize
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or node.end_lineno is None:
            continue
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if body else node.end_lineno
        if node.lineno <= line <= last and last - node.lineno < smallest:
            best, smallest = range(node.lineno, last + 1), last - node.lineno
    return best


def tests_of_ranks(path: Path) -> list[str]:
    """The test files of the mirrored folder and of tests/distributed, first those that name the
    module."""
    module = re.compile(rf"\b{re.escape('.'.join(path.with_suffix('').parts))}\b")
    folders = (Path("tests") / path.parent, Path("tests/distributed"))
    files = [one for folder in folders for one in sorted(folder.rglob("test_*.py"))]
    files.sort(key=lambda one: module.search(one.read_text()) is None)
    return [one.as_posix() for one in files]


def failing(copy: Path) -> list[str]:
    """Tests of ranks that fail here without a mutant, such as those that need a main module."""
    tried(copy, ["tests/distributed"], OF_RANKS, [], CPU_SECONDS)
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", (copy / OUTPUT_FILE).read_text(), re.MULTILINE)


def verdict(
    mutant: Mutant,
    copy: Path,
    runners: Runners,
    seconds: float,
    of_ranks: list[str],
    broken: list[str],
) -> str:
    """Killed, survived, or without a test.

    Args:
        seconds: CPU time of the package's tests without a mutant; one that takes longer is endless.
        of_ranks: files whose tests of ranks are asked too, but for the ``broken`` ones.
    """
    target = copy / mutant.path
    whole = Path(mutant.path).read_text()
    target.write_text(mutated(mutant))
    asked = [
        (tests_of(mutant, runners), QUICK, round(seconds) + SPARE_SECONDS),
        (of_ranks, OF_RANKS, CPU_SECONDS),
    ]
    found = NO_TEST
    try:
        for tests, marks, bound in asked:
            status = NONE_COLLECTED
            if tests:
                options = ["-x", *(f"--deselect={one}" for one in broken)]
                status, _ = tried(copy, tests, marks, options, bound)
            if status not in (0, NONE_COLLECTED):
                return KILLED
            if status == 0:
                found = SURVIVED
    finally:
        target.write_text(whole)
    return found


def tried(
    copy: Path, tests: list[str], marks: str, options: list[str], seconds: int
) -> tuple[int, float]:
    """pytest's exit status in a forked process with at most ``seconds`` of CPU time, and the CPU
    seconds that it took."""
    child = os.fork()
    if not child:
        _test(copy, [*tests, *options, "-m", marks], seconds)
    end = time.monotonic() + WALL_SECONDS
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.2)


def _test(copy: Path, arguments: list[str], seconds: int) -> None:
    import pytest

    try:
        os.setsid()
        os.chdir(copy)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        output = os.open(OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["PYTHONPATH"] = str(copy)
        sys.path = [str(copy), *(one for one in sys.path if Path(one) != Path.cwd())]
        base = f"--basetemp={copy / 'tmp'}"
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", base]
        os._exit(int(pytest.main([*options, *arguments])))
    finally:
        os._exit(1)


def warm_up() -> None:
    """Import what every test needs of others, and nothing of this project."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in WARM:
        __import__(name)


def copy_of_the_project(folder: Path) -> Path:
    """A new copy, whose files are changed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        if Path(name).is_dir():
            shutil.copytree(name, folder / name, ignore=ignored)
        else:
            shutil.copy(name, folder)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder.resolve()


def results(folder: Path) -> dict[Mutant, str]:
    """The last verdict on each mutant."""
    path = folder / RESULT_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = {}
    for row in rows:
        word = row.pop("verdict")
        found[Mutant(**row)] = word
    return found


def table(found: dict[Mutant, str]) -> list[str]:
    """Killed, survived and without a test, by package."""
    lines = ["| package | mutants | killed | survived | no test | share killed |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for package in PACKAGES:
        words = [word for one, word in found.items() if one.package == package]
        if words:
            numbers = [len(words), *(words.count(one) for one in (KILLED, SURVIVED, NO_TEST))]
            share = f"{words.count(KILLED) / len(words):.0%}"
            lines.append(f"| {package} | {' | '.join(map(str, numbers))} | {share} |")
    return lines


if __name__ == "__main__":
    main()
