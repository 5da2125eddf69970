"""The result of tuning, as Markdown."""

import json
from typing import Any

from recsys.distill.tuning import Outcome, Search

GOOD_ENOUGH = "The present settings are good enough here: no gain exceeds its interval."
NOT_SURE = "Better on average, but the interval contains 0; more seeds may narrow it."


def report(search: Search, outcome: Outcome) -> str:
    """The table of changes with their effects, and a conclusion."""
    settings, early = search.settings, search.schema.windows
    students = ", ".join(student.name for student in search.present.students.students)
    counts = ", ".join(f"{count} {state}" for state, count in search.counts().items())
    lines = ["# Tuning", "", f"Students {students}, arm {search.present.arm}; trials: {counts}."]
    lines += [f"NE of windows {early[1].name} to {early[-1].name}, each predicted before"]
    lines[-1] += (
        f" training on it, mean of {settings.seeds} seeds other than the search's; lower is better."
    )
    lines.append("")
    if outcome.difference is None:
        lines.append(f"NE with the present settings {outcome.before:.4f}; no trial differed.")
    else:
        difference = outcome.difference
        relative = 100 * difference.mean / outcome.before
        kind = "chosen" if outcome.chosen else "best"
        lines.append(
            f"NE with the present settings {outcome.before:.4f}, with the {kind} ones "
            f"{outcome.after:.4f}: {difference.mean:+.4f} ({relative:+.2f} %), "
            f"{settings.confidence:.0%} interval {difference.low:+.4f} to {difference.high:+.4f}."
        )
    if not outcome.chosen:
        lines += ["", GOOD_ENOUGH]
        if outcome.difference is not None and outcome.difference.mean < 0:
            lines.append(NOT_SURE)
        return "\n".join([*lines, ""])
    lines += ["", "| key | before | after | effect on NE | low | high | taken |"]
    lines.append("|---|---|---|---:|---:|---:|---|")
    for one in outcome.keys:
        effect = one.effect
        cells = ["-"] * 3
        if effect is not None:
            cells = [f"{value:+.4f}" for value in (effect.mean, effect.low, effect.high)]
        row = [one.key, _text(one.before), _text(one.after), *cells, "yes" if one.taken else "no"]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "The effect is that of one key's change on top of all the others."]
    if any(not one.taken for one in outcome.keys):
        lines.append(
            "The others stay unchanged: without them the result is not worse beyond its interval."
        )
    return "\n".join([*lines, ""])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
