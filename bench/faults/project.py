"""The project that faults are tried on: as small as one with two ranks, a distilled student and a
baseline may be."""

from contextlib import chdir
from pathlib import Path

from tasks.overrides import apply_overrides
from tests.support.projects import copy_project

ROWS_LINE, FEWER_ROWS = "rows: 240000", "rows: 3000"
SETTINGS = {
    "data.max_windows": "3",
    "baselines.run": "[logistic]",
    "augment.teacher": "own",
    "train.world_size": "2",
    "train.global_batch_size": "128",
    "teacher.checkpoint_every_batches": "2",
    "teacher.table_learning_rate": "0.1",
    "teacher.model.dense_layers": "[16]",
    "teacher.model.over_layers": "[16]",
    "students.seeds": "[1]",
    "students.table_learning_rate": "null",
    "students.students": "[{name: feed, domain: feed}]",
    "students.arms": "{plain: {mode: none}, distilled: {rows: own}}",
    "students.auto_windows": "2",
    "towers.partition.probe_windows": "2",
    "towers.partition.restarts": "1",
    "towers.partition.steps": "100",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "20",
    "stream.alias": "null",
}
RESULTS = [
    "dvc.lock",
    "data/windows",
    "data/oracle",
    "data/scores",
    "models/baselines",
    "models/partition",
    "models/published",
    "models/stream",
    "models/students",
    "models/teacher",
    "reports/registration.json",
]


def small_project(folder: Path) -> Path:
    """A copy of the project with a small log, small models and settings to match."""
    folder.mkdir(parents=True)
    copy_project(folder)
    description = folder / "params/datasets/synthetic.yaml"
    description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
    with chdir(folder):
        apply_overrides(SETTINGS)
    return folder
