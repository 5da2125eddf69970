"""Every model on a student's evaluation rows: baselines, arms, teacher and oracle, each against
plain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recsys.evaluation.printed import number

PLAIN, DISTILLED, TEACHER, ORACLE = "plain", "distilled", "teacher", "oracle"
# What students learn from if it is not the teacher alone
SCORERS = {
    "external": "teacher (external)",
    "mean": "teacher (mean)",
    "stacked": "teacher (stacked)",
}
NOT_ARMS = {TEACHER, *SCORERS.values(), ORACLE}
# Baselines by their names in tables, with the folders of their predictions.
BASELINES = {
    "base rate": "base_rate/own",
    "logistic (own rows)": "logistic/own",
    "logistic (all rows)": "logistic/all",
    "trees (own rows)": "trees/own",
    "trees (all rows)": "trees/all",
}
ON_OWN_ROWS = ("logistic (own rows)", "trees (own rows)")
ON_ALL_ROWS = ("logistic (all rows)", "trees (all rows)")


@dataclass(frozen=True)
class ModelRow:
    """One model on the evaluation rows of a student and task.

    ``metrics`` are its means over seeds; ``low`` and ``high`` bound ``difference``, its NE minus
    that of the student's plain arm. ``p`` is the difference's p value, and ``p_holm`` the same
    corrected for all models in the report; NaN where unknown.
    """

    student: str
    task: str
    model: str
    metrics: dict[str, float]
    difference: float
    low: float
    high: float
    p: float = math.nan
    p_holm: float = math.nan

    def as_json(self) -> dict[str, Any]:
        """Each metric's value, and the NE difference."""
        values: dict[str, Any] = {name: {"value": value} for name, value in self.metrics.items()}
        apart = ("difference", "low", "high", "p", "p_holm")
        values["ne"] |= {name: getattr(self, name) for name in apart}
        return values


def model_table(rows: Sequence[ModelRow]) -> str:
    """A Markdown table with one line per model, and a task column if a student has several."""
    shown = len({row.task for row in rows}) > 1
    headings = ["student", *(["task"] if shown else []), "model", "NE", "AUC"]
    lines = [
        f"| {' | '.join([*headings, 'NE - plain [low, high]'])} |",
        "|---" * (len(headings) - 2) + "|---:" * 3 + "|",
    ]
    for row in rows:
        cells = [row.student, *([row.task] if shown else []), row.model]
        cells += [number(row.metrics[metric], ".4f") for metric in ("ne", "auc")]
        low, high = number(row.low, "+.5f"), number(row.high, "+.5f")
        apart = f"{number(row.difference, '+.5f')} [{low}, {high}]"
        cells.append("" if row.model == PLAIN else apart)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_words(rows: Sequence[ModelRow]) -> str:
    """One sentence about the models of a student and task: which ones beat its plain arm, and by
    how much."""
    plain = next(row for row in rows if row.model == PLAIN)
    arms = [row for row in rows if row.model not in {PLAIN, *NOT_ARMS, *BASELINES}]
    parts = [f"{row.model} {_against(row, plain)}" for row in arms]
    for names, where in ((ON_OWN_ROWS, "own"), (ON_ALL_ROWS, "all")):
        known = [row for row in rows if row.model in names and math.isfinite(row.metrics["ne"])]
        if known:
            best = min(known, key=lambda row: row.metrics["ne"])
            name = best.model.partition(" (")[0]
            parts.append(f"the best baseline on {where} rows ({name}) {_against(best, plain)}")
    return f"{plain.student}: {'; '.join(parts)}."


def _against(row: ModelRow, plain: ModelRow) -> str:
    """A model against plain, in words, in % of plain's NE; intervals are those of the gain."""
    base = plain.metrics["ne"] / 100
    gain, low, high = -row.difference / base, -row.high / base, -row.low / base
    if not all(map(math.isfinite, (gain, low, high))):
        return "cannot be compared with plain"
    interval = f"[{low:.1f}, {high:.1f}]"
    if low > 0:
        return f"beats plain by {gain:.1f} % {interval}"
    if high < 0:
        return f"loses to plain by {-gain:.1f} % [{-high:.1f}, {-low:.1f}]"
    return f"cannot be told from plain: {gain:+.1f} % {interval}"
