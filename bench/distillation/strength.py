"""How strong should distillation be? Sweep gradient_scale on rows that no report is judged on.

    python -m bench.distillation.strength --seed 777 --scales 1 3 10
    python -m bench.distillation.strength --windows-before-evaluation --scales 0.3 1 3

The first generates the stream of params/datasets/synthetic.yaml with another seed. The second takes
the data set of params/data.yaml, but only the windows before evaluate.first_evaluation_window.
Trains one teacher, and the students of params/students.yaml for each scale; prints a Markdown
table.
"""

import argparse
import tempfile
from pathlib import Path

from bench.distillation.lab import FIRST_TRAINED_WINDOW
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.scoring import score_windows
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.evaluation.report import evaluate
from recsys.evaluation.settings import EvaluateSettings
from recsys.towers.probe import learn_partition
from recsys.towers.settings import TowersSettings
from recsys.training.settings import TrainSettings
from tasks.teacher_settings import load_teacher

PARAMS = Path("params")
METRICS = ("ne", "auc", "calibration")


def write_windows(folder: Path, seed: int | None) -> None:
    """The rows to choose on: the stream with ``seed``, or the windows before those that judge."""
    data = load_settings(PARAMS / "data.yaml", DataSettings)
    dataset = load_settings(PARAMS / f"datasets/{data.dataset}.yaml", DatasetSettings)
    if seed is None:
        judge = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
        data = data.model_copy(update={"max_windows": judge.first_evaluation_window})
    else:
        assert dataset.synthetic is not None, "--seed is for the generated stream"
        dataset = dataset.model_copy(
            update={"synthetic": dataset.synthetic.model_copy(update={"seed": seed})}
        )
    ingest(data, dataset, folder / "windows", folder / "oracle")


def prepare(folder: Path, seed: int | None) -> None:
    """Windows, partition, teacher and scores in ``folder``."""
    for name in ("windows", "oracle", "partition", "teacher", "scores"):
        (folder / name).mkdir()
    write_windows(folder, seed)
    teacher, train = load_teacher(PARAMS)
    partition = load_settings(PARAMS / "towers.yaml", TowersSettings).partition
    learn_partition(folder / "windows", partition, train, folder / "partition")
    partition_file = folder / "partition/partition.json"
    train_teacher(
        TrainingJob(
            folder / "windows", teacher, train, folder / "teacher", partition_file=partition_file
        )
    )
    augment = load_settings(PARAMS / "augment.yaml", AugmentSettings)
    score_windows(
        folder / "windows",
        partition_file,
        folder / "teacher",
        teacher,
        augment,
        train,
        folder / "scores",
    )


def measure(folder: Path, scale: float, first_window: int | None) -> list[str]:
    """Markdown rows, one per student, for one gradient scale; judged from ``first_window`` on if
    given."""
    settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
    head = settings.distillation.model_copy(update={"gradient_scale": scale})
    students = folder / f"students-{scale}"
    students.mkdir()
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    chosen = settings.model_copy(update={"distillation": head})
    train_students(
        TrainingJob(folder / "windows", chosen, train, students, scores_dir=folder / "scores")
    )
    judge = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    if first_window is not None:
        judge = judge.model_copy(update={"first_evaluation_window": first_window})
    report = evaluate(
        folder / "windows",
        folder / "oracle",
        folder / "teacher",
        students,
        judge,
        folder / f"report-{scale}",
    )
    rows = []
    for student in report.rows_by_student:
        one = {
            row.comparison.metric: row.comparison
            for row in report.metrics
            if row.student == student
        }
        cells = [
            f"{one[m].difference:+.5f} [{one[m].low:+.5f}, {one[m].high:+.5f}]" for m in METRICS
        ]
        rows.append(f"| {scale:g} | {student} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument(
        "--seed", type=int, help="of the generated stream; not that of a stream that is reported on"
    )
    rows.add_argument("--windows-before-evaluation", action="store_true")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    given = parser.parse_args()
    first_window = FIRST_TRAINED_WINDOW if given.windows_before_evaluation else None
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.seed)
        print(
            f"| gradient_scale | student | {' | '.join(METRICS)} |\n|---|---|"
            + "---|" * len(METRICS)
        )
        for scale in given.scales:
            print("\n".join(measure(Path(name), scale, first_window)), flush=True)


if __name__ == "__main__":
    main()
