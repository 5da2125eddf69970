"""Write docs/reference, with every parameter and command, from the settings classes and the
options."""

import argparse
import re
from collections.abc import Iterator, Mapping
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import Any

from flows.command_line import PARAMS, run_program
from flows.towerflow import COMMANDS, parser_of

PARAMETERS = Path("docs/reference/parameters.md")
COMMANDS_PAGE = Path("docs/reference/commands.md")
UNITS = {  # by the ending of a key's name
    "_hours": "hours",
    "_minutes": "minutes",
    "_s": "seconds",
    "_ms": "ms",
    "_gb": "GiB",
    "_mb": "MB",
    "_seconds": "seconds",
    "gb_s": "GB per second",
    "_tflops": "TFLOPS",
    "_flops": "FLOPs per example",
    "_windows": "windows",
    "_examples": "examples",
    "_batches": "batches",
    "_steps": "steps",
    "_rows": "rows",
    "batch_size": "examples",
}
COMMENTED_KEY = re.compile(r"(?P<indent> *)(?P<hidden># )?(?P<key>[a-z_]+):(?P<rest>.*)")
HELP_WIDTH = 90
INTRODUCTION = """# Parameters

<!-- Written by `python -m flows.reference` from the settings classes; edit those. -->

Every key of params/, with its type, default, unit and meaning. Nested keys are in the section of
their class. `--set FILE.KEY=VALUE` writes any of them, with dots for nesting:
`towerflow run --set train.world_size=4 --set students.distillation.mode=shared`.
"""
ABOUT_COMMANDS = """# Commands

<!-- Written by `python -m flows.reference` from the options of each command; edit those. -->

`towerflow` is in `.venv/bin` and runs in the project's root. A user's mistake gives one line and
exit status 2; Ctrl-C gives 130. Each stage is also `python -m flows.STAGE`, as dvc.yaml calls it.

`make run` is `towerflow run`; `make deployments` is `towerflow deployments`; `make mlflow` and
`make prefect` are `towerflow ui mlflow` and `towerflow ui prefect`. `make test`, `make test-fast`,
`make check`, `make coverage`, `make bench` and `make docs` are for people who change the code.

CI runs all of them but these: `towerflow deployments` and `ui` with their `make` targets (they
serve until you stop them), `make test-fast` (runs a part of `make test`), `make coverage` (runs
`make test` with every line traced), `make lock` (asks the package index for new versions), and
`make bench` and the rest of bench/ (benchmarks take minutes to hours).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(options: argparse.Namespace) -> None:
    """Write both pages."""
    from recsys.files import write_atomically

    write_atomically(PARAMETERS, parameters().encode())
    write_atomically(COMMANDS_PAGE, commands().encode())


def commands() -> str:
    """The page of every subcommand of `towerflow`, in Markdown."""
    lines = [ABOUT_COMMANDS]
    for title, listed in COMMANDS.items():
        lines.append(f"## {title.capitalize()}\n")
        for command in listed:
            parser = parser_of(command)
            parser.formatter_class = partial(argparse.HelpFormatter, width=HELP_WIDTH)
            lines.append(f"### towerflow {command.name}\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(lines)


def parameters() -> str:
    """The reference page, in Markdown: a section per file of params/, then one per nested class."""
    from recsys.data.settings import DatasetSettings
    from recsys.planning.hardware import Hardware
    from recsys.planning.tables import PlannedModel
    from recsys.towers.step_costs import TowerCluster
    from tasks.settings import FILES

    files = {f"{name}.yaml": model for name, model in FILES.items()} | {
        "datasets/NAME.yaml": DatasetSettings,
        "hardware/NAME.yaml": Hardware,
        "models/NAME.yaml": PlannedModel,
        "clusters/NAME.yaml": TowerCluster,
    }
    sections, nested = [INTRODUCTION], {}
    comments: dict[str, dict[str, str]] = {}  # by nested class, then key
    for file, model in files.items():
        schema = model.model_json_schema()
        nested |= schema.get("$defs", {})
        own = _comments(PARAMS / file)
        sections.append(_section(f"params/{file}", schema, own, nested))
        for key, field in schema["properties"].items():
            below = {
                name[len(key) + 1 :]: text
                for name, text in own.items()
                if name.startswith(f"{key}.")
            }
            comments[_nested_class(field)] = below | comments.get(_nested_class(field), {})
    sections.append("## Nested settings\n\nSettings that are parts of other settings.\n")
    for name, schema in sorted(nested.items()):
        sections.append(_section(name, schema, comments.get(name, {}), nested, level=3))
    return "\n".join(sections)


def _nested_class(field: Mapping[str, Any]) -> str:
    """The name of the settings class that a key holds directly, in a list or as one alternative;
    empty if there is none."""
    inner = [field, field.get("items", {}), *field.get("anyOf", [])]
    return next((one["$ref"].rpartition("/")[2] for one in inner if "$ref" in one), "")


def _section(
    title: str,
    schema: Mapping[str, Any],
    comments: Mapping[str, str],
    nested: Mapping[str, Any],
    level: int = 2,
) -> str:
    """The title, the class's docstring and a table of its keys."""
    text = schema.get("description", "")
    lines = [f"{'#' * level} {title}\n", f"{_markdown(text)}\n"]
    lines += ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    required = schema.get("required", [])
    for key, field in schema["properties"].items():
        default = "required" if key in required else _default(field)
        unit = next((UNITS[end] for end in sorted(UNITS, key=len)[::-1] if key.endswith(end)), "")
        described = field.get("description", "") if "$ref" not in field else ""
        meaning = comments.get(key) or _sentences_on(key, text) or described
        meaning = meaning or _first_sentence(field, nested)
        cells = (f"`{key}`", _type(field), default, unit, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(field: Mapping[str, Any]) -> str:
    """A key's type in words, with its bounds; a link to the section of a nested class."""
    if "$ref" in field:
        name = _nested_class(field)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{one}`" for one in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = field.get("items") or field.get("prefixItems", [{}])[0]
        return f"list of {_type(items)}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"map to {_type(inner)}" if isinstance(inner, dict) else "map"
    names = {
        "integer": "integer",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "null": "null",
    }
    bounds = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
        "multipleOf": "a multiple of",
    }
    limits = [f"{sign} {field[bound]:g}" for bound, sign in bounds.items() if bound in field]
    return " ".join([names.get(field.get("type", ""), "any"), *limits])


def _default(field: Mapping[str, Any]) -> str:
    """A key's default in YAML notation; defaults of nested settings are in their own section."""
    if "default" not in field and "$ref" in field:
        return "see there"
    empty = {"array": [], "object": {}}.get(field.get("type", ""))  # from a default_factory
    value = field.get("default", empty)
    if isinstance(value, dict) and value:
        return "see there"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return "see the file"
    words: dict[Any, str] = {None: "null", True: "true", False: "false", "": '""'}
    hashable = isinstance(value, bool | str | None)
    return f"`{words.get(value, value) if hashable else value}`"


def _comments(path: Path) -> dict[str, str]:
    """The comment beside each key of a file of params, by dotted key, including keys that are
    commented out; empty where there is no such file."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # indents and keys down to the current line
    lines = path.read_text().splitlines() if path.is_file() else []
    for match in filter(None, map(COMMENTED_KEY.fullmatch, lines)):
        indent = len(match["indent"])
        above = [(width, key) for width, key in above if width < indent]
        dotted = ".".join([*(key for _, key in above), match["key"]])
        comment = re.search(r"\s# (.+)$", match["rest"])
        if comment:
            found[dotted] = comment[1]
        if not match["hidden"]:
            above.append((indent, match["key"]))
    return found


def _sentences_on(key: str, docstring: str) -> str:
    """The line of ``key`` under a docstring's Attributes, or the sentences that name it."""
    attribute = re.search(
        rf"^ *{key}: (?P<first>.+(?:\n {{8,}}.+)*)", docstring, flags=re.MULTILINE
    )
    if attribute:
        return _markdown(" ".join(attribute["first"].split())).removesuffix(".")
    return _markdown(" ".join(one for one in _sentences(docstring) if f"``{key}``" in one))


def _first_sentence(field: Mapping[str, Any], nested: Mapping[str, Any]) -> str:
    """The first sentence of the docstring of the class that a key holds, if any."""
    name = _nested_class(field)
    return _markdown(next(_sentences(nested[name].get("description", "")), "")) if name else ""


def _sentences(docstring: str) -> Iterator[str]:
    for paragraph in docstring.split("\n\n"):
        yield from re.split(r"(?<=[.])\s+(?=[A-Z`])", " ".join(paragraph.split()))


def _markdown(docstring: str) -> str:
    """A docstring's reStructuredText as Markdown: code and cross-references."""
    text = re.sub(r":[a-z]+:`~?(?:[\w.]+\.)?([\w]+)`", r"`\1`", cleandoc(docstring))
    text = re.sub(r"^Attributes:\n((?:    .*\n?)+)", "", text, flags=re.MULTILINE).strip()
    return text.replace("``", "`")


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
