"""What scored candidates are worth to a student: half the rows of a domain lose their labels.

    python -m bench.distillation.candidates FOLDER

The generated stream becomes a table of clicks. Of the domain video, every other row leaves the log
and becomes a candidate. A teacher learns the log, scores both, and students of video learn with and
without the candidates. Prints NE on the log's own rows of the judged windows, the fifth and later
ones, and paired differences over the seeds with 95 % intervals by the user.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.ingest import ingest
from recsys.data.schema import CANDIDATES_DIR, Schema
from recsys.data.settings import DatasetSettings, DataSettings, SyntheticSettings
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.scoring import score_windows
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import TrainingJob
from recsys.evaluation.comparison import compare
from recsys.models.settings import ModelSettings
from recsys.training.settings import TrainSettings

ROWS, FIRST_JUDGED, SEEDS = 240_000, 4, [1, 2, 3]
DOMAIN = "video"
TRAIN = TrainSettings(world_size=1, global_batch_size=256)
TEACHER = TeacherSettings(
    model=ModelSettings(
        architecture="dlrm", embedding_dimension=32, dense_layers=[64, 32], over_layers=[128, 64]
    ),
    table_learning_rate=None,
)
ARMS = {
    "plain": DistillationSettings(mode="none"),
    "own": DistillationSettings(rows="own", candidates=False),
    "own, candidates": DistillationSettings(rows="own"),
    "all": DistillationSettings(rows="all", candidates=False),
    "all, candidates": DistillationSettings(rows="all"),
}
COMPARED = [("plain", "own"), ("own", "own, candidates"), ("all", "all, candidates")]


def windows_of(folder: Path) -> Path:
    """The log and its candidates as windows."""
    stream, whole = SyntheticSettings(rows=ROWS), folder / "stream"
    dataset = DatasetSettings(format="synthetic", synthetic=stream)
    ingest(DataSettings(), dataset, whole, folder / "oracle")
    schema = Schema.load(whole)
    rows = pl.read_parquet(whole / "*/part-*.parquet").sort("event_time", "example_id")
    hidden = (pl.col("domain") == schema.domains.index(DOMAIN)) & (pl.col("example_id") % 2 == 1)
    rows.filter(~hidden).write_parquet(folder / "log.parquet")
    rows.filter(hidden).drop("label", "label_time").write_parquet(folder / "candidates.parquet")
    table = {
        "files": ["log.parquet"],
        "candidates": {"files": ["candidates.parquet"]},
        "file_format": "parquet",
        "time": {"column": "event_time", "unit": "ms"},
        "label_time": {"column": "label_time", "unit": "ms"},
        "label": "label",
        "group": "group",
        "domain": {
            "column": "domain",
            "values": {str(place): name for place, name in enumerate(schema.domains)},
        },
        "dense": schema.dense,
        "categorical": [{"column": one.name, "table_rows": "auto"} for one in schema.categorical],
    }
    described = DatasetSettings.model_validate({"format": "table", "table": table})
    settings = DataSettings(dataset="half_hidden", root=str(folder))
    ingest(settings, described, folder / "windows", folder / "oracle")
    return folder / "windows"


def main(folder: Path) -> None:
    """Make the data in the empty ``folder``, train and print."""
    windows = windows_of(folder)
    teacher, scores, students = (folder / name for name in ("teacher", "scores", "students"))
    teacher.mkdir()
    students.mkdir()
    train_teacher(TrainingJob(windows, TEACHER, TRAIN, teacher))
    for data, log in ((windows, scores), (windows / CANDIDATES_DIR, scores / CANDIDATES_DIR)):
        score_windows(data, None, teacher, TEACHER, AugmentSettings(), TRAIN, log)
    settings = StudentsSettings(
        students=[StudentSettings(name=DOMAIN, domain=DOMAIN)],
        seeds=SEEDS,
        arms=ARMS,
        table_learning_rate=None,
        diagnostics=False,
    )
    train_students(TrainingJob(windows, settings, TRAIN, students, scores_dir=scores))
    judged = [window.name for window in Schema.load(windows).windows[FIRST_JUDGED:]]
    predicted = {
        (arm, seed): pl.concat(
            pl.read_parquet(students / f"{DOMAIN}/{arm}/seed-{seed}/predictions/{name}.parquet")
            for name in judged
        )
        for arm in ARMS
        for seed in SEEDS
    }
    logits = {
        arm: [predicted[arm, seed]["logit"].to_numpy().astype(np.float64) for seed in SEEDS]
        for arm in ARMS
    }
    rows = predicted["plain", SEEDS[0]]
    labels, groups = rows["label"].to_numpy().astype(np.float64), rows["group"].to_numpy()
    print(f"{len(labels):,} judged rows, {int(labels.sum()):,} clicks")
    for first, second in COMPARED:
        one = compare(logits[first], logits[second], labels, groups, 1_000, 0.95, 0)[0]
        print(
            f"{one.metric}: {first} {one.first:.4f}, {second} {one.second:.4f}: "
            f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
