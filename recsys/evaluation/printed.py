"""Print an evaluation's table; a separate module, so that printing does not import what computes
it."""

import math
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from recsys.files import read_json

TABLE_FILE = "table.md"
TABLE_WIDTH = 110  # characters, so that no cell of the table is cut


def number(value: float, form: str) -> str:
    """``value`` in the format ``form``; a dash if it is undefined."""
    return format(value, form) if math.isfinite(value) else "-"


def print_report(folder: Path) -> None:
    """Print the table of the evaluation in ``folder`` on the terminal."""
    report = read_json(folder / "report.json")
    rows = ", ".join(f"{student} {count:,}" for student, count in report["rows"].items())
    console = Console(width=max(Console().width, TABLE_WIDTH))
    arms = list(report.get("comparisons", {}).values()) or [{"distilled": {}}]
    console.print(Markdown((folder / TABLE_FILE).read_text()))
    for student, verdict in report.get("verdicts", {}).items():
        if not verdict["passes"]:
            console.print(f"{student} may not be served as champion: {verdict['why']}", style="red")
    console.print(
        f"Predictions made before training on them, windows from {report['first_window']}; rows: "
        f"{rows}; "
        f"seeds: {len(report['seeds'])}. low and high bound the difference "
        f"{', '.join(next(iter(arms)))} - plain."
    )
