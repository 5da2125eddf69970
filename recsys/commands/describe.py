"""``towerflow describe FILE...``."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from recsys.commands.arguments import positive

MOST_FILES_SEEN = 10_000
TOWERS = 4  # as in params/towers.yaml; never more than the log's categorical features


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files, where to write, and what the user knows about the log."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a log's files or their URLs; globs in quotes"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="write the YAML here, e.g. params/datasets/my_log.yaml; without it, it is printed",
    )
    parser.add_argument("--time", metavar="COLUMN", help="the column of the time of the event")
    parser.add_argument("--label", metavar="COLUMN", help="the column of the label")
    parser.add_argument(
        "--sample-rows", type=positive, help="rows to look at closely, 100,000 by default"
    )


def run(options: argparse.Namespace) -> None:
    """Look at a log, print findings, and write a first YAML that ingest can use.

    Raises:
        InputError: a file cannot be read, the log has no time or nothing to learn from, or the
            file to write already exists.
    """
    from recsys.config import InputError, parse_settings
    from recsys.data.describe import (
        choose,
        columns_of,
        criteo_text,
        dataset_text,
        open_log,
        print_columns,
        root_of,
        survey,
    )
    from recsys.data.describe.reading import SAMPLE_ROWS
    from recsys.data.settings import DatasetSettings
    from recsys.data.sources.files import URL, resolve_files
    from recsys.files import write_atomically

    output = options.output
    if output is not None and output.exists():
        raise InputError(f"{output}: already exists; give another --output, or remove it")
    if output is not None and (output.suffix != ".yaml" or not output.parent.is_dir()):
        where = f"there is no folder {output.parent}" if output.suffix == ".yaml" else "no .yaml"
        raise InputError(f"{output}: {where}; expected such as params/datasets/my_log.yaml")
    name = output.stem if output is not None else "my_log"
    with TemporaryDirectory() as copies:  # of files behind URLs
        log = open_log(resolve_files(options.files, Path(), Path(copies)))
        is_remote = any(URL in pattern for pattern in options.files)
        root = None if is_remote else root_of(log)
        log = replace(log, patterns=_patterns(options.files, root))
        if log.file_format == "criteo":
            text = criteo_text(log)
            command = _next_command(name, root, 24.0, ["all"], TOWERS)
        else:
            found = survey(log, options.sample_rows or SAMPLE_ROWS)
            try:
                choices = choose(found, options.time, options.label)
            except InputError:
                print_columns(found, columns_of(found), {})
                raise
            print_columns(found, choices.columns, choices.uses)
            for warning in choices.warnings:
                print(f"- {warning}")
            text = dataset_text(choices)
            features = len(choices.categorical) + 1 + (choices.explode is not None)
            command = _next_command(name, root, choices.window_hours, choices.students, features)
    others = 0 if root is None else _other_files(root, log.files)
    if others:
        print(
            f"- {root} holds {others:,} other files: DVC hashes all of data.root, so a folder "
            f"with only the log is faster, and changes of other files start no new run"
        )
    parse_settings(text, str(output or name), DatasetSettings)
    if output is None:
        print(f"\n{text}")
        print(f"Save it as params/datasets/{name}.yaml, then:\n{command}")
        return
    write_atomically(output, text.encode())
    print(f"\nWrote {output}: read it, then run:\n{command}")


def _patterns(given: list[str], root: Path | None) -> list[str]:
    """The file patterns for the YAML: URLs as they are; a single glob relative to ``root``, so that
    files added later are found; otherwise the files by name."""
    if root is None:
        return [one if "://" in one else str(Path(one).absolute()) for one in given]
    parts = Path(given[0]).absolute().parts
    if len(given) > 1 or parts[: len(root.parts)] != root.parts:
        return []
    rest = parts[len(root.parts) :]
    return ["/".join(rest)] if any("*" in part for part in rest) else []


def _other_files(root: Path, files: Sequence[Path]) -> int:
    """How many files in ``root`` are not in ``files``, counted up to a limit."""
    own = {file.resolve() for file in files}
    found = islice(root.rglob("*"), MOST_FILES_SEEN)
    return sum(1 for path in found if path.is_file() and path not in own)


def _next_command(
    name: str, root: Path | None, window_hours: float, students: Sequence[str], features: int
) -> str:
    """The command that takes the data set ``name`` to compared students, one per domain in
    ``students``."""
    listed = ", ".join(f"{{name: {domain}, domain: {domain}}}" for domain in students)
    given = {
        "data.dataset": name,
        **({} if root is None else {"data.root": root}),
        "data.window_hours": f"{window_hours:g}",
        "students.students": f"[{listed}]",
    }
    if features < TOWERS:
        given["towers.partition.towers"] = features
    sets = [f"--set {shlex.quote(f'{key}={value}')}" for key, value in given.items()]
    return " ".join(["towerflow run", *sets])
