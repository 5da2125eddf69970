"""The campaign's page."""

from pathlib import Path
from typing import Any

from bench.faults.kills import VICTIMS

REPORT = Path("docs/benchmarks/faults.md")
WANTED = 100
TOP = """# Faults

    python -m bench.faults.campaign --work /tmp/faults --kills 130 --at-once 2 --write

The project has 3,000 rows, two ranks, and one student with a distilled arm. Each stage of its
pipeline is killed, and so is its stream. A kill is a SIGKILL at a random moment within the time
that the work takes undisturbed. It hits the whole process tree, the parent, or one rank (another
child where there are no ranks). Then the same command runs again. *Same bytes*: every result,
dvc.lock included, has the same hash as in an undisturbed run. *Left*: processes still alive a
minute after the kill. *Tidy*: TMPDIR is empty after the second run. The runs use no Prefect
server, like the stages of `dvc repro`; MLflow's records wait on disk.

Two kills left an empty file with a random name of eight letters: `tempfile.gettempdir` creates
and removes such a file in each Python process to check that it can write.

Damage is noticed since each file's SHA-256 is checked when a run first reads it. That costs 0.6 ms
per MB: on 36 hours of Globo (880,960 rows) 0.09 of the 700 CPU seconds of the students stage, 0.18
of the 90 seconds of evaluate.
"""


def page(rows: list[dict[str, Any]]) -> list[str]:
    """The results as Markdown lines."""
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
        lines += ["", f"Incomplete: {len(kills)} of {WANTED} kills so far."]
    lines += ["", f"{late} more kills came after the work had ended and are not counted."]
    if not any("fault" in row for row in rows):
        return lines
    lines += [
        "",
        "| fault | exit status | traceback | message | same bytes in the end |",
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
