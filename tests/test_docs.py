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
