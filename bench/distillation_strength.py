"""How strong should distillation be? Sweep gradient_scale on a stream that no report is judged on.

    python -m bench.distillation_strength --seed 777 --scales 1 3 10 30

Generates the stream of params/datasets/synthetic.yaml with another seed, trains one teacher on it,
and the students of params/students.yaml for each scale; prints a Markdown table.
"""

import argparse
import tempfile
from pathlib import Path

from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.distill.scoring import score_windows
from recsys.distill.settings import AugmentSettings, StudentsSettings, TeacherSettings
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.evaluation.report import evaluate
from recsys.evaluation.settings import EvaluateSettings
from recsys.towers.probe import learn_partition
from recsys.towers.settings import PartitionSettings
from recsys.training.settings import TrainSettings

PARAMS = Path("params")
METRICS = ("ne", "auc", "calibration")


def prepare(folder: Path, seed: int) -> None:
    """Windows, partition, teacher and scores of the stream with ``seed``, in ``folder``."""
    for name in ("windows", "oracle", "partition", "teacher", "scores"):
        (folder / name).mkdir()
    dataset = load_settings(PARAMS / "datasets/synthetic.yaml", DatasetSettings)
    assert dataset.synthetic is not None
    stream = dataset.synthetic.model_copy(update={"seed": seed})
    data = load_settings(PARAMS / "data.yaml", DataSettings)
    ingest(data, dataset.model_copy(update={"synthetic": stream}), folder / "windows", folder / "oracle")
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    partition = load_settings(PARAMS / "partition.yaml", PartitionSettings)
    learn_partition(folder / "windows", partition, train, folder / "partition")
    teacher = load_settings(PARAMS / "teacher.yaml", TeacherSettings)
    partition_file = folder / "partition/partition.json"
    train_teacher(folder / "windows", partition_file, teacher, train, folder / "teacher")
    augment = load_settings(PARAMS / "augment.yaml", AugmentSettings)
    score_windows(folder / "windows", partition_file, folder / "teacher", teacher, augment, train, folder / "scores")


def measure(folder: Path, scale: float) -> list[str]:
    """Markdown rows, one a student, for one gradient scale."""
    settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
    head = settings.distillation.model_copy(update={"gradient_scale": scale})
    students = folder / f"students-{scale}"
    students.mkdir()
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    chosen = settings.model_copy(update={"distillation": head})
    train_students(folder / "windows", folder / "scores", chosen, train, students)
    judge = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    report = evaluate(
        folder / "windows", folder / "oracle", folder / "teacher", students, judge, folder / f"report-{scale}"
    )
    rows = []
    for student in report.rows_by_student:
        one = {row.comparison.metric: row.comparison for row in report.metrics if row.student == student}
        cells = [f"{one[m].difference:+.5f} [{one[m].low:+.5f}, {one[m].high:+.5f}]" for m in METRICS]
        rows.append(f"| {scale:g} | {student} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 10.0, 30.0])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.seed)
        print(f"| gradient_scale | student | {' | '.join(METRICS)} |\n|---|---|" + "---|" * len(METRICS))
        for scale in given.scales:
            print("\n".join(measure(Path(name), scale)), flush=True)


if __name__ == "__main__":
    main()
