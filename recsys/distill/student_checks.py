"""What students want of the data, checked before anything is trained; needs no PyTorch unless a
student has a budget."""

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.models.names import check_sequences
from recsys.models.settings import ModelSettings
from recsys.training.task_weights import check_task_weights


def check_students(schema: Schema, settings: StudentsSettings) -> None:
    """Check that each student's domain, tasks and sequences are in the data, the budgets, and what
    :func:`check_students_alone` does.

    Raises:
        InputError: otherwise.
    """
    check_students_alone(settings)
    for student in settings.students:
        if student.domain not in schema.domains:
            raise InputError(
                f"{student.where('domain')}: {student.name!r} has domain {student.domain!r}; the "
                f"data has {', '.join(schema.domains)}"
            )
        try:
            own = schema.for_tasks(tasks_of(student, schema))
        except InputError as error:
            raise InputError(f"{student.where('tasks')}: {student.name!r}: {error}") from error
        check_task_weights(student.task_weights, own.tasks, student.where)
        model = settings.model_of(student)
        for one in (model, *_peers_of(settings, student)):
            check_sequences(own, one)
        _check_budget(own, student, model)


def check_students_alone(settings: StudentsSettings) -> None:
    """Check what needs no data: that no student needs a partition, and that one which learns other
    domains' rows from scores reads scores.

    Raises:
        InputError: otherwise.
    """
    for student in settings.students:
        for arm in settings.arms:
            spec = settings.distillation_of(student, arm)
            if spec.rows == "scores_elsewhere" and not spec.reads_scores:
                raise InputError(
                    f"{spec.where('rows')}: scores_elsewhere needs a teacher's scores, and arm "
                    f"{arm!r} of student {student.name!r} has mode {spec.mode}, which reads none; "
                    "set own or all"
                )
        for one in (settings.model_of(student), *_peers_of(settings, student)):
            if one.towers:
                raise InputError(
                    f"{one.where('towers')}: {student.name!r}: students are too small to be split; "
                    "set false"
                )


def _peers_of(settings: StudentsSettings, student: StudentSettings) -> list[ModelSettings]:
    """The rankers that are trained with the student in its arms."""
    arms = [settings.distillation_of(student, arm) for arm in settings.arms]
    return [arm.peer_model for arm in arms if arm.has_peer and arm.peer_model is not None]


def tasks_of(student: StudentSettings, schema: Schema) -> list[str]:
    """What the student predicts: the data's main task unless it says otherwise."""
    return schema.tasks[:1] if student.tasks is None else student.tasks


def _check_budget(schema: Schema, student: StudentSettings, model: ModelSettings) -> None:
    limits = student.budget
    if limits.parameters is None and limits.training_flops is None:
        return
    from recsys.models.cost import ranker_cost
    from recsys.models.factory import build_ranker

    cost = ranker_cost(build_ranker(schema, model, None, seed=0, table_device="meta"))
    for name, limit, value in (
        ("parameters", limits.parameters, cost.parameters),
        ("training_flops", limits.training_flops, round(cost.flops)),
    ):
        if limit is not None and value > limit:
            raise InputError(
                f"{student.where(f'budget.{name}')}: the model of {student.name!r} has {value:,}, "
                f"more than {limit:,}; make it smaller (model) or raise the budget"
            )
