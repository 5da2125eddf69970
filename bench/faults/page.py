"""The campaign's page."""

from pathlib import Path
from typing import Any

from bench.faults.kills import VICTIMS

REPORT = Path("docs/benchmarks/faults.md")
WANTED = 100
TOP = """# Faults

    python -m bench.faults.campaign --work /tmp/faults --kills 100 --at-once 3 --write

A project of 3,000 rows, two ranks, one student with a distilled arm: its pipeline, stage by stage,
and its stream. A kill is SIGKILL at a moment drawn over the time that the work takes alone, of the
whole tree, of the parent, or of one rank (where there is none, another child). Then the same
command runs again. *Same bytes*: the hash of every result, dvc.lock included, is that of an
undisturbed run. *Left*: processes that live a minute after the kill. *Tidy*: TMPDIR is empty after
the second run. The runs go without a Prefect server, as `dvc repro` runs stages; MLflow's records
wait on disk.

One kill left an empty file under a random name of eight letters, as `tempfile.gettempdir` makes
and removes in each Python process to see whether it can write.
"""


def page(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown of what was found."""
    kills = [row for row in rows if "victim" in row and row["hit"]]
    lines = [
        *TOP.splitlines(),
        "",
        f"| killed | kills | {' | '.join(f'of {one}' for one in VICTIMS)} | same bytes | left | "
        "tidy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    works = list(dict.fromkeys(row["work"] for row in kills))
    for name in [*works, "all"]:
        of_it = [row for row in kills if name in ("all", row["work"])]
        victims = [sum(row["victim"] == victim for row in of_it) for victim in VICTIMS]
        numbers = [len(of_it), *victims]
        numbers += [sum(row[key] for row in of_it) for key in ("same", "left", "tidy")]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    late = sum("victim" in row and not row["hit"] for row in rows)
    if len(kills) < WANTED:
        lines += ["", f"Not whole: {len(kills)} of {WANTED} kills so far."]
    lines += ["", f"{late} more came after the work had ended, and are not counted."]
    if not any("fault" in row for row in rows):
        return lines
    lines += [
        "",
        "| fault | exit status | traceback | what is said | same bytes in the end |",
        "|---|---:|---|---|---|",
    ]
    for row in rows:
        if "fault" in row:
            said = row["said"].replace("|", "\\|")
            yes = ["no", "yes"]
            lines.append(
                f"| {row['fault']} | {row['status']} | {yes[row['traceback']]} | {said} | "
                f"{yes[row['same']]} |"
            )
    return lines
