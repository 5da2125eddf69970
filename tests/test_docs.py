"""What README, CONTRIBUTING and docs/ point at is there: files, headings, commands."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from flows.towerflow import COMMANDS, parser_of

ROOT = Path(__file__).parents[1]
PAGES = [
    page.relative_to(ROOT)
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
]
OF_THE_SITE = {"contributing.md", "changes.md"}  # docs/hooks.py makes them of files of the root
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"\btowerflow ([a-z]+)\b([^`\n]*)")
MODULE = re.compile(r"python -m ([a-z_0-9]+(?:\.[a-z_0-9]+)*)")
TARGET = re.compile(r"^ {4}make ([a-z-]+)|`make ([a-z-]+)[ `]", re.MULTILINE)
BY_NAME = {one.name: one for commands in COMMANDS.values() for one in commands}
# A test file that runs each documented command, with a piece of the line that does
RUN_BY = {
    **{
        f"towerflow {stage.name}": ("tests/test_pipeline.py", "@STAGES")
        for stage in COMMANDS["one stage of it"]
    },
    "towerflow run": ("tests/test_pipeline.py", 'sys.executable, "-m", "flows.pipeline")'),
    "towerflow compare": ("tests/tasks/test_registry.py", "compare_named("),
    "towerflow serve": ("tests/recsys/serving/test_server.py", "create_app("),
    "towerflow score": ("tests/recsys/serving/test_scoring.py", "score_file("),
    "towerflow stream": ("tests/test_stream.py", '"flows.stream", *options'),
    "towerflow snapshots": ("tests/recsys/distill/test_withdrawals.py", "withdraw("),
    "towerflow describe": ("tests/recsys/data/describe/test_describe.py", 'main(["describe"'),
    "towerflow crosses": ("tests/tasks/test_crosses.py", 'main(["crosses"'),
    "towerflow tune": ("tests/tasks/test_tuning.py", 'main(["tune"'),
    "towerflow plan": ("tests/flows/test_towerflow.py", 'main(["plan"'),
    "towerflow advise": ("tests/flows/test_towerflow.py", 'main(["advise"'),
    "towerflow calibrate": ("tests/recsys/commands/test_plan.py", "command(calibrate"),
    "make run": ("Makefile", "run: setup\n\t$(BIN)/python -m flows.pipeline"),
    "make setup": (".ci/run", "make setup"),
    "make check": (".ci/run", "check docs test"),
    "make docs": (".ci/run", "check docs test"),
    "make test": (".ci/run", "check docs test"),
    "python -m flows.pipeline": (
        "tests/test_pipeline.py",
        'sys.executable, "-m", "flows.pipeline")',
    ),
    "python -m flows.register": ("tests/test_pipeline.py", "@STAGES"),
    "python -m flows.evaluate": ("tests/test_pipeline.py", "@STAGES"),
    "python -m flows.code": ("tests/tasks/test_code.py", '"flows.code", *options'),
    "python -m flows.reference": ("tests/flows/test_reference.py", "parameters()"),
    "python -m tasks.courier": ("tests/tasks/test_tracking.py", "run_courier("),
    "python -m pytest": ("Makefile", "$(BIN)/python -m pytest"),
}
# Why CI does not run the others; docs/reference/commands.md says it too
NOT_RUN = {
    "they serve until you stop them": [
        *("towerflow deployments", "towerflow ui"),
        *("make deployments", "make mlflow", "make prefect"),
    ],
    "runs a part of `make test`": ["make test-fast"],
    "runs `make test` with every line traced": ["make coverage"],
    "asks the package index for new versions": ["make lock"],
    "benchmarks take minutes to hours": ["make bench"],
}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {"-".join(one.split()) for one in words} | {one.replace(" ", "-") for one in words}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    dead = []
    for target in LINK.findall((ROOT / page).read_text()):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target) or path in OF_THE_SITE:
            continue
        linked = (ROOT / page).parent / path if path else ROOT / page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_there_and_have_the_options_that_are_shown(page: Path) -> None:
    text = (ROOT / page).read_text()
    wrong = [f"python -m {name}" for name in MODULE.findall(text) if not find_spec(name)]
    for name, rest in commands_of(text):
        if name not in BY_NAME:
            wrong.append(f"towerflow {name}")
            continue
        known = {
            flag for action in parser_of(BY_NAME[name])._actions for flag in action.option_strings
        }
        wrong += [f"towerflow {name} {one}" for one in flags_of(rest) if one not in known]
    makefile = (ROOT / "Makefile").read_text()
    for target in filter(None, (name for pair in TARGET.findall(text) for name in pair)):
        if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE):
            wrong.append(f"make {target}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_tests_that_are_named_are_there(page: Path) -> None:
    text = (ROOT / page).read_text()
    missing = [path for path in re.findall(r"tests/[\w/]+\.py", text) if not (ROOT / path).exists()]
    names = {path.name for path in (ROOT / "tests").rglob("*.py")}
    missing += [name for name in re.findall(r"\btest_\w+\.py", text) if name not in names]
    assert missing == []


def test_what_the_library_page_shows_is_there() -> None:
    page = (ROOT / "docs/reference/library.md").read_text()
    shown = re.findall(r"^::: ([\w.]+)\.(\w+)$", page, flags=re.MULTILINE)
    assert len(shown) > 20
    missing = [
        f"{module}.{name}"
        for module, name in shown
        if not re.search(
            rf"^(?:def|class) {name}\b",
            (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(),
            flags=re.MULTILINE,
        )
    ]
    assert missing == []


def test_every_documented_command_runs_in_ci_or_says_why_not() -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    targets = filter(None, (name for pair in TARGET.findall(text) for name in pair))
    modules = {name for name in MODULE.findall(text) if name != "flows"}  # python -m flows.<stage>
    documented = {f"towerflow {name}" for name, _ in commands_of(text)}
    documented |= {f"make {name}" for name in targets}
    documented |= {f"python -m {name}" for name in modules if not name.startswith("bench.")}
    reasons = {command: why for why, commands in NOT_RUN.items() for command in commands}
    assert documented - RUN_BY.keys() - reasons.keys() == set()
    for command, (file, piece) in RUN_BY.items():
        assert piece in (ROOT / file).read_text(), f"{file} no longer runs {command}"
    said = " ".join((ROOT / "docs/reference/commands.md").read_text().split())
    assert [why for why in NOT_RUN if why not in said] == []


def test_the_page_of_benchmarks_lists_every_benchmark_that_is_documented() -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    benches = {name for name in MODULE.findall(text) if name.startswith("bench.")}
    listed = (ROOT / "bench/README.md").read_text()
    assert [name for name in sorted(benches) if f"`{name}`" not in listed] == []


def commands_of(text: str) -> list[tuple[str, str]]:
    """Commands in code: (name, what follows)."""
    code = re.findall(r"`([^`\n]+)`", text)
    code += [line.strip() for line in text.splitlines() if line.startswith(" " * 4)]
    found = [COMMAND.match(one.removeprefix("$ ")) for one in code]
    return [(match[1], match[2]) for match in found if match]


def flags_of(rest: str) -> list[str]:
    """The options in what follows a command."""
    try:
        words = shlex.split(rest, comments=True)
    except ValueError:  # a quotation that the next line ends
        words = rest.split()
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
