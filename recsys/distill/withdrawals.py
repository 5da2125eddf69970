"""Withdrawn snapshots, and what they affected."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from recsys.config import InputError, load_settings
from recsys.data.schema import Schema
from recsys.distill.score_log import ScoreLog
from recsys.distill.snapshots import Snapshot
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.withdrawn_settings import WithdrawnSettings
from recsys.files import write_atomically

HEADER = (
    "# Snapshots that may not score any more; written by `towerflow snapshots withdraw NAME`.\n"
)


@dataclass(frozen=True)
class Touched:
    """The windows that a snapshot has scored, and the students that read them."""

    windows: list[str]
    students: list[str]


def withdraw(name: str, snapshots: list[Snapshot], withdrawn_file: Path) -> Snapshot:
    """Record atomically in ``withdrawn_file`` that the snapshot ``name`` is withdrawn; repeating it
    is not an error.

    Raises:
        InputError: there is no such snapshot.
    """
    found = next((snapshot for snapshot in snapshots if snapshot.name == name), None)
    if found is None:
        names = ", ".join(snapshot.name for snapshot in snapshots) or "none"
        raise InputError(f"no snapshot {name!r}; snapshots: {names}")
    before = load_settings(withdrawn_file, WithdrawnSettings)
    if found.weights_hash not in before.hashes:
        entries = [one.model_dump() for one in before.snapshots]
        entries.append({"snapshot": name, "weights_hash": found.weights_hash})
        text = HEADER + yaml.safe_dump({"snapshots": entries}, sort_keys=False)
        write_atomically(withdrawn_file, text.encode())
    return found


def touched_by(
    snapshot: Snapshot, log: ScoreLog, schema: Schema, settings: StudentsSettings
) -> Touched:
    """The windows that ``snapshot`` has scored, and the students that train on examples in them.

    Windows scored by another snapshot with the same name are not included.
    """
    logged = log.facts.own_snapshots.get(snapshot.name, {})
    if logged.get("weights_hash") != snapshot.weights_hash:
        return Touched([], [])
    windows = log.used().get(snapshot.name, [])
    facts = [log.window(name) for name in windows]
    domains = {
        domain for one in facts if one is not None for domain, rows in one.domains.items() if rows
    }
    known = domains & set(schema.domains)
    return Touched(
        windows,
        [one.name for one in settings.students if known & _read_by(one, settings, schema)],
    )


def _read_by(student: StudentSettings, settings: StudentsSettings, schema: Schema) -> set[str]:
    """The domains whose scores the student reads in at least one arm; all domains with ``rows:
    auto``."""
    arms = [settings.distillation_of(student, arm) for arm in settings.arms]
    elsewhere = any(arm.reads_scores and arm.rows != "own" for arm in arms)
    return set(schema.domains) if elsewhere else {student.domain}
