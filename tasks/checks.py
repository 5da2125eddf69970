"""Check the settings of all stages against each other and against the data before any work
starts."""

from collections.abc import Mapping
from pathlib import Path

from recsys.config import InputError
from recsys.data.schema import SCHEMA_FILE, Schema
from recsys.distill.student_checks import check_students, check_students_alone
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.teacher_checks import check_teacher, check_teacher_data
from recsys.distill.teacher_settings import TeacherSettings
from recsys.evaluation.settings import EvaluateSettings, check_evaluated
from recsys.models.names import TABLE_PREFIX, check_sequences
from recsys.sharding.settings import check_table_names
from recsys.towers.settings import TowersSettings
from recsys.towers.tower_hosts import check_kinds_inside, tower_ranks
from recsys.training.settings import TrainSettings
from tasks.probe_check import check_probe_is_past
from tasks.project import PARAMS, WINDOWS, require
from tasks.settings import ProjectSettings, load_project


def check_settings(texts: Mapping[Path, str] | None = None) -> ProjectSettings:
    """Load every file of params/ and check them against each other.

    Args:
        texts: contents to check instead of those on disk, by file.

    Raises:
        InputError: a file is missing or wrong, or two contradict each other.
    """
    project = load_project(PARAMS, texts)
    check_probe_is_past(project.towers, project.evaluate)
    _check_chosen_on_the_past(project.students, project.teacher, project.evaluate)
    check_teacher(project.teacher, project.train_teacher)
    check_students_alone(project.students)
    if project.train_teacher.tower_transform:
        _check_transform(project.towers, project.train_teacher)
    return project


def check_before(stage: str) -> None:
    """Check what the command of ``stage`` needs; before ingest, existing data may belong to other
    settings, so only the settings are checked.

    Raises:
        InputError: as :func:`check_settings_and_data`.
    """
    if stage == "ingest":
        check_settings()
    else:
        check_settings_and_data()


def check_settings_and_data() -> None:
    """Run :func:`check_settings` and, once there are windows, check that the data have what the
    settings name.

    Raises:
        InputError: as :func:`check_settings`, or a setting names something that the data do not
            have.
    """
    project = check_settings()
    if not (WINDOWS / SCHEMA_FILE).is_file():
        return
    require(WINDOWS)  # else a damaged schema would be reported as a wrong setting
    schema = Schema.load(WINDOWS)
    check_evaluated(project.evaluate, len(schema.windows))
    tables = [TABLE_PREFIX + feature.name for feature in schema.categorical]
    for key in ("table_sharding", "table_rate_factors"):
        check_table_names(project.train, key, tables)
    check_sequences(schema, project.towers.partition.probe_model)
    check_teacher_data(schema, project.teacher)
    check_students(schema, project.students)


def _check_chosen_on_the_past(
    students: StudentsSettings, teacher: TeacherSettings, evaluate: EvaluateSettings
) -> None:
    first = evaluate.first_evaluation_window
    for settings, key, what in (
        (students, "auto_windows", "what students leave to auto"),
        (teacher, "rate_auto_windows", "the teacher's table_learning_rate"),
    ):
        windows = settings.windows_to_choose_on
        if windows > first:
            raise InputError(
                f"{settings.where(key)}: {what} would be chosen on windows that judge the "
                f"students; must be at most {first} "
                f"({evaluate.where('first_evaluation_window')}), got {windows}"
            )


def _check_transform(towers: TowersSettings, train: TrainSettings) -> None:
    """Check that the ranks form whole hosts with a tower each, and that no table leaves its tower's
    hosts."""
    check_kinds_inside(train)
    per_host = train.ranks_per_host
    if per_host is None:  # LOCAL_WORLD_SIZE, known where the ranks run
        return
    if train.world_size % per_host:
        raise InputError(
            f"{train.where('ranks_per_host')}: {train.world_size} ranks "
            f"({train.where('world_size')}) are not whole hosts of {per_host}"
        )
    partition = towers.partition
    by_hand = partition.strategy == "manual"
    count = len(partition.manual_towers) if by_hand else partition.towers
    where = train.where("hosts_per_tower")
    tower_ranks(train.world_size, per_host, train.hosts_per_tower, count, where)
