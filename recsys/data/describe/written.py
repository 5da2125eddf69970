"""Print what :func:`choose` decided as a table, and write it as the YAML of a data set."""

import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recsys.data.describe.choices import Choices, Use
from recsys.data.describe.columns import Column
from recsys.data.describe.reading import HASHES, Log, Survey, count_lines
from recsys.data.settings import CounterSettings, MomentSettings
from recsys.data.sources.files import natural_key

MOST_FILES_LISTED = 4
EXAMPLE_CHARACTERS = 20
SMALLEST_WIDTH = 110  # characters of the table
CRITEO_DAYS = 10
WIDTH = 10_000  # wide enough that no line is broken


def root_of(log: Log) -> Path:
    """The folder that contains all files."""
    return Path(os.path.commonpath([file.resolve().parent for file in log.files]))


def print_columns(survey: Survey, columns: Sequence[Column], uses: Mapping[str, Use]) -> None:
    """Print a row per column: its contents and, where known, its role and why."""
    console = Console(width=max(Console().width, SMALLEST_WIDTH))
    table = Table(box=None, pad_edge=False, title=f"{survey.rows:,} rows", title_justify="left")
    for heading in ("column", "holds", "distinct", "missing", "for example", "used as"):
        right = heading in ("distinct", "missing")
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=heading != "used as"
        )
    for column in columns:
        use = uses.get(column.name)
        table.add_row(
            escape(column.name) or "''",
            column.kind if column.separator is None else f"list, {column.separator!r}",
            _count(column),
            f"{column.missing:.1%}" if column.missing else "",
            escape(_example(survey.sample[column.name])),
            "?" if use is None else escape(f"{use.role or '-'}{': ' if use.why else ''}{use.why}"),
        )
    console.print(table)


def _count(column: Column) -> str:
    return f"{'~' if column.distinct >= HASHES else ''}{column.distinct:,}"


def _example(raw: pl.Series) -> str:
    known = raw.drop_nulls()
    if not len(known):
        return ""
    value = known[0]
    text = str(value.to_list() if isinstance(value, pl.Series) else value)
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 3] + "..."


def dataset_text(choices: Choices) -> str:
    """The YAML of a data set, with a comment for each choice; warnings come first."""
    log, span = choices.survey.log, choices.span
    lines = [
        f"# Written by `towerflow describe`, a first draft: {choices.survey.rows:,} rows, "
        f"{_day(span.first_ms)} to {_day(span.last_ms)} (UTC).",
        *(f"# - {warning}" for warning in choices.warnings),
        "format: table",
        "table:",
        f"  files: {_flow(_patterns(log))}   # under data.root",
        f"  file_format: {log.file_format}",
    ]
    if log.quotes != "checked":
        why = "quotes are plain characters" if log.quotes == "no" else "quoted fields span lines"
        lines.append(f'  quotes: "{log.quotes}"   # {why}')
    lines.append(f"  time: {_flow(_moment(choices.time.settings))}")
    if choices.label_time is not None:
        lines += [
            f"  label_time: {_flow(_moment(choices.label_time.settings))}   # when the label was "
            f"known",
            f"  attribution_window_s: {choices.attribution_hours * 3600}   # every label is known "
            f"this long after its event; a later positive is none",
        ]
    else:
        lines.append(
            "  # label_delay_s in time: how long after the event a label is known; 0 by default"
        )
    lines += [*_label_lines(choices), *_group_lines(choices), *_feature_lines(choices)]
    left = [
        (column.name, choices.uses[column.name].why)
        for column in choices.columns
        if choices.uses[column.name].role in ("", "group", "session")
    ]
    if left:
        lines.append("  # Left out:")
        lines += [f"  #   {_flow(name)}: {why}" for name, why in left]
    # A column's name may contain a line break, a comment must not
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"


def _label_lines(choices: Choices) -> list[str]:
    lines: list[str] = []
    if choices.explode is not None:
        given = choices.explode.model_dump(exclude_defaults=True)
        lines.append(f"  explode: {_flow(given)}   # an example per candidate")
    elif choices.negatives is not None:
        lines += [
            "  # Clicks alone: per_click negatives each, by the clicks of the hours before",
            f"  sample_negatives: {_flow(choices.negatives.model_dump(exclude_defaults=True))}",
        ]
    elif choices.label is not None:
        positive = choices.label.positive
        label: Any = choices.label.column
        if positive is not None:
            label = {"column": label, "positive": _number(positive)}
        lines.append(f"  label: {_flow(label)}   # {choices.uses[choices.label.column].why}")
    if choices.further_labels and choices.label is not None:
        lines.append("  # labels:   # further tasks; a task is called by small letters")
        lines += [f"  #   {name.lower()}: {_flow(name)}" for name in choices.further_labels]
    return lines


def _group_lines(choices: Choices) -> list[str]:
    group, domain = choices.group, choices.domain
    lines = [f"  group: {_flow(group)}" if group else "  group: null   # the raw row"]
    if group:
        lines[0] += "   # gAUC is computed within it"
    if domain is None:
        lines.append("  # domain: {column, values, other}: no column looks like one, so one domain")
    else:
        lines += [
            "  domain:   # a student per domain; models also train on rows with other values",
            f"    column: {_flow(domain.column)}",
            f"    values: {_flow(domain.values)}",
            f"    other: {domain.other}",
        ]
    return lines


def _feature_lines(choices: Choices) -> list[str]:
    lines = [f"  dense: {_flow(choices.dense)}"] if choices.dense else []
    if choices.explode is not None:
        lines = [f"  dense: {_flow([*choices.dense, 'shown_count'])}"]
    lines.append("  categorical:   # table_rows: auto counts the values")
    if choices.explode is not None:
        item = {"column": choices.explode.item, "table_rows": "auto"}
        lines.append(f"    - {_flow(item)}")
    by_name = {column.name: column for column in choices.columns}
    for one in choices.categorical:
        given = one.model_dump(exclude_defaults=True)
        lines.append(f"    - {_flow(given)}   # {_count(by_name[one.column])} values")
    if "event_hour" not in by_name:
        lines.append("    - {column: event_hour, table_rows: auto}   # of the time, UTC")
    if choices.counters:
        lines.append("  counters:   # past-only clicks, examples and smoothed rates")
        lines += [f"    - {_flow(_counter(one))}" for one in choices.counters]
    return lines


def _counter(counter: CounterSettings) -> dict[str, Any]:
    given: dict[str, Any] = {
        "by": counter.by,
        "bin_minutes": _number(counter.bin_minutes),
        "hours": [_number(one) for one in counter.hours],
    }
    if counter.examples:
        return given | {"prior_rows": 20, "prior_rate": counter.prior_rate}
    return given | {"examples": False}


def _moment(settings: MomentSettings) -> dict[str, Any]:
    given = settings.model_dump(exclude_defaults=True)
    return {key: given[key] for key in ("column", "unit", "format", "earliest") if key in given}


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _flow(value: Any) -> str:
    """``value`` as one line of YAML."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=WIDTH, allow_unicode=True
    )
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text  # which is YAML, too


def _day(time_ms: int) -> str:
    return pl.Series([time_ms]).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d %H:%M")[0]


def _patterns(log: Log) -> list[str]:
    """The files relative to their common folder; as a glob if it gives the same files in the same
    order."""
    if log.patterns:
        return log.patterns
    root = root_of(log)
    names = [os.path.relpath(file.resolve(), root) for file in log.files]
    escaped = [glob.escape(name) for name in names]
    if len(names) <= MOST_FILES_LISTED:
        return escaped
    shortest = min(map(len, names))
    same = [len({name[index] for name in names}) == 1 for index in range(-shortest, shortest)]
    ends, starts = same[:shortest][::-1], same[shortest:]
    start = names[0][: [*starts, False].index(False)].rstrip("0123456789")
    end = names[0][len(names[0]) - [*ends, False].index(False) :].lstrip("0123456789")
    pattern = f"{glob.escape(start)}*{glob.escape(end)}"
    found = glob.glob(pattern, root_dir=root)  # noqa: PTH207
    in_order = sorted((root / name for name in found), key=natural_key)
    return [pattern] if in_order == [root / name for name in names] else escaped


def criteo_text(log: Log) -> str:
    """The YAML for a log in Criteo's layout, which has neither names nor times."""
    rows = sum(map(count_lines, log.files))
    per_second = max(rows / (CRITEO_DAYS * 86_400), 1e-6)
    return (
        f"# Written by `towerflow describe`: {rows:,} rows in Criteo's layout.\n"
        f"# It has no times: the order of the rows is time, and rows_per_second makes them span\n"
        f"# {CRITEO_DAYS} days. The published train.txt is in time order, test.txt has no labels.\n"
        f"format: criteo\n"
        f"criteo:\n"
        f"  files: {_flow(_patterns(log))}   # under data.root\n"
        f'  start: "2024-01-01T00:00:00"\n'
        f"  rows_per_second: {per_second:.6g}\n"
        f"  table_rows: 200000   # of each of the 26 tables\n"
        f"  chunk_rows: 100000\n"
    )
