"""Check what the teacher needs from its training settings and the data before anything is trained;
needs no PyTorch."""

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.distill.teacher_settings import TeacherSettings
from recsys.models.names import check_sequences
from recsys.sharding.communication import check_kinds
from recsys.training.settings import TrainSettings
from recsys.training.task_weights import check_task_weights


def check_teacher(settings: TeacherSettings, train: TrainSettings) -> None:
    """Check that the teacher can be trained with these settings.

    Raises:
        InputError: it cannot.
    """
    if not train.tower_transform:  # its communication between hosts involves no sums
        check_kinds(train)
    if settings.checkpoint_asynchronously and train.table_memory == "file":
        raise InputError(
            f"{settings.where('checkpoint_asynchronously')}: copies the tables into memory, and "
            f"they do not fit there ({train.where('table_memory')}: file); set one of them "
            "otherwise"
        )


def check_teacher_data(schema: Schema, settings: TeacherSettings) -> None:
    """Check that the teacher's tasks and sequences are in the data, with enough windows.

    Raises:
        InputError: one is not.
    """
    needed, windows = settings.windows_to_choose_on, len(schema.windows)
    if windows < needed:
        raise InputError(
            f"{settings.where('rate_auto_windows')}: the tables' learning rate is chosen on "
            f"{needed} windows, the data have {windows}; set fewer, or a table_learning_rate"
        )
    check_task_weights(settings.task_weights, schema.tasks, settings.where)
    check_sequences(schema, settings.model)
