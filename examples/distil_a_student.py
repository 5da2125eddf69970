"""Distil one model into another.

    python -m examples.distil_a_student

A teacher trains on all domains of a small generated stream and scores every window with a snapshot
from before it. Students of one domain then train with and without the scores. What the teacher adds
to a student is not exported: both cost the same to serve.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings, SyntheticSettings
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.scoring import score_windows
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import TrainingJob
from recsys.models.settings import ModelSettings
from recsys.training.settings import TrainSettings

TRAIN = TrainSettings(world_size=1)
TEACHER = TeacherSettings(
    model=ModelSettings(embedding_dimension=16, dense_layers=[32], over_layers=[64, 32]),
    table_learning_rate=None,  # that of TRAIN
)
STUDENTS = StudentsSettings(
    model=ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[16, 8]),
    seeds=[1],
    students=[StudentSettings(name="feed", domain="feed")],
    # The student also learns from other domains' rows, by their scores alone
    distillation=DistillationSettings(mode="shared", loss_weight=3.0, rows="scores_elsewhere"),
    arms={"plain": DistillationSettings(mode="none"), "distilled": DistillationSettings()},
)


def main(folder: Path, rows: int = 20_000) -> dict[str, float]:
    """Teach in ``folder``; the NE of each arm on the last window."""
    windows, scores = folder / "windows", folder / "scores"
    stream = SyntheticSettings(rows=rows, windows=4)
    dataset = DatasetSettings(format="synthetic", synthetic=stream)
    ingest(DataSettings(), dataset, windows, folder / "oracle")

    for name in ("teacher", "scores", "students"):
        (folder / name).mkdir()
    train_teacher(TrainingJob(windows, TEACHER, TRAIN, folder / "teacher"))
    score_windows(windows, None, folder / "teacher", TEACHER, AugmentSettings(), TRAIN, scores)
    job = TrainingJob(windows, STUDENTS, TRAIN, folder / "students", scores_dir=scores)
    trained = train_students(job)

    found = {run.split("/")[1]: measured[-1]["ne"] for run, measured in trained.items()}
    for arm, ne in found.items():
        print(f"{arm}: NE {ne:.4f} on the last window")
    return found


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
