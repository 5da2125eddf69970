"""How far the first pass of a table has come, so that a killed ingest goes on from there."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from recsys.data.sources.labels import LabelsSeen
from recsys.data.sources.times import TimesSeen
from recsys.files import write_atomically

STATE_FILE = "state.json"


@dataclass
class PassState:
    """What the first pass has left in a folder, brought up to date after each block.

    Attributes:
        fingerprint: of the log, its settings and the code; a state of another one is of no use.
        zeros: tasks whose labels are known to hold a 0.
        file_rows: rows taken from each file.
        read: rows of the log in all blocks; ``kept``: of these, not filtered out.
        runs: sorted runs in the folder; ``bad``: files of bad rows, ``bad_rows`` in all.
        times: what is known of the columns of times, by their key of the settings.
        labels: what is known of the columns of labels, by task.
    """

    fingerprint: str
    zeros: list[str] = field(default_factory=list)
    file_rows: list[int] = field(default_factory=list)
    read: int = 0
    kept: int = 0
    runs: int = 0
    bad: int = 0
    bad_rows: int = 0
    times: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, dict[str, bool]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it; what it speaks of has to be on the disk by now."""
        write_atomically(folder / STATE_FILE, json.dumps(asdict(self)).encode())


def restored(folder: Path, fingerprint: str) -> tuple[Path, PassState] | None:
    """The folder in ``folder`` that a killed first pass of the same log has left, and its state;
    None where there is none. Those of others are removed."""
    found: tuple[Path, PassState] | None = None
    for path in sorted(folder.glob("rows-*")):
        try:
            state = PassState(**json.loads((path / STATE_FILE).read_text()))
        except (OSError, ValueError, TypeError):  # killed before its first block was done
            state = PassState("")
        if state.fingerprint == fingerprint:
            found = path, state
        else:
            shutil.rmtree(path)
    return found


def times_state(seen: TimesSeen) -> dict[str, Any]:
    """For JSON."""
    plain = {name: value for name, value in vars(seen).items() if not isinstance(value, list)}
    lists = {"values": seen.values, "outside_ms": seen.outside_ms}
    return plain | {
        name: [value for one in series for value in one] for name, series in lists.items()
    }


def times_seen(state: dict[str, Any]) -> TimesSeen:
    """From what :func:`times_state` gave."""
    values = pl.Series(state["values"], dtype=pl.Float64)
    outside = pl.Series(state["outside_ms"], dtype=pl.Int64)
    return TimesSeen(**{**state, "values": [values], "outside_ms": [outside]})


def labels_state(seen: dict[str, LabelsSeen]) -> dict[str, dict[str, bool]]:
    """For JSON."""
    return {task: asdict(one) for task, one in seen.items()}
