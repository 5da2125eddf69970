"""List and withdraw the teacher's snapshots."""

from dataclasses import dataclass
from pathlib import Path

from recsys.config import load_settings
from recsys.data.schema import CANDIDATES_DIR, Schema
from recsys.distill.score_log import ScoreLog, check_snapshots_of_log
from recsys.distill.snapshots import SNAPSHOTS_DIR, list_snapshots
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.withdrawals import touched_by, withdraw
from recsys.distill.withdrawn_settings import WithdrawnSettings
from tasks.project import (
    PARAMS,
    SCORES,
    STREAM,
    STUDENTS,
    TEACHER,
    WINDOWS,
    WITHDRAWN_FILE,
    require,
)


@dataclass(frozen=True)
class Results:
    """The folders of a teacher, its scores and its students, and the command that brings them up to
    date after a withdrawal."""

    teacher: Path
    scores: Path
    students: Path
    command: str


BATCH = Results(TEACHER, SCORES, STUDENTS, "dvc repro")
STREAMED = Results(STREAM / "teacher", STREAM / "scores", STREAM / "students", "towerflow stream")


def snapshot_table(of: Results = BATCH) -> list[str]:
    """One line per snapshot: name, high-water mark, NE, state and the windows it has scored."""
    require(of.teacher)
    withdrawn = load_settings(WITHDRAWN_FILE, WithdrawnSettings).hashes
    used = ScoreLog(of.scores).used()
    lines = []
    for one in list_snapshots(of.teacher / SNAPSHOTS_DIR):
        state = (
            "withdrawn"
            if one.weights_hash in withdrawn
            else "held back"
            if one.held_back
            else "good"
        )
        ne = "none" if one.ne is None else f"{one.ne:.4f}"
        scored = ", ".join(used.get(one.name, [])) or "nothing"
        lines.append(
            f"{one.name}  high-water mark {one.high_water_mark}  NE {ne}  {state}  scored: {scored}"
        )
    return lines


def withdraw_snapshot(name: str, of: Results = BATCH) -> list[str]:
    """Withdraw a snapshot and return lines that name the affected windows and students.

    Raises:
        InputError: there is no such snapshot.
    """
    require(of.teacher, WINDOWS)
    snapshot = withdraw(name, list_snapshots(of.teacher / SNAPSHOTS_DIR), WITHDRAWN_FILE)
    students = load_settings(PARAMS / "students.yaml", StudentsSettings)
    touched = touched_by(snapshot, ScoreLog(of.scores), Schema.load(WINDOWS), students)
    trained = [student for student in touched.students if (of.students / student).is_dir()]
    return [
        f"withdrawn: {name} (noted in {WITHDRAWN_FILE})",
        f"windows it has scored: {', '.join(touched.windows) or 'none'}",
        f"students trained on these scores: {', '.join(trained) or 'none'}",
        f"run {of.command}: these windows are scored by the snapshot before it, then the students "
        f"train again",
    ]


def check_scores() -> None:
    """Check, if the teacher exists here, that no score is from a snapshot that is gone, changed or
    withdrawn.

    Raises:
        InputError: there is such a score; the message names the windows.
    """
    if not TEACHER.exists():
        return
    withdrawn = load_settings(WITHDRAWN_FILE, WithdrawnSettings).hashes
    snapshots = list_snapshots(TEACHER / SNAPSHOTS_DIR)
    check_snapshots_of_log(ScoreLog(SCORES), snapshots, set(withdrawn))
    if (SCORES / CANDIDATES_DIR).is_dir():
        check_snapshots_of_log(ScoreLog(SCORES / CANDIDATES_DIR), snapshots, set(withdrawn))
