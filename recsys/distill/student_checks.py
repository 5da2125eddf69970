"""Check what students need from the data before anything is trained; needs PyTorch only if a
student has a budget."""

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.models.names import check_sequences
from recsys.models.settings import ModelSettings
from recsys.training.task_weights import check_task_weights


def check_students(schema: Schema, settings: StudentsSettings) -> None:
    """Check that each student's domain, tasks and sequences are in the data, check the budgets, and
    run :func:`check_students_alone`.

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
    """Check what needs no data: no student may need a partition, and a student that uses other
    domains' scores must read scores.

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
                    f"{one.where('towers')}: {student.name!r}: students are too small for towers; "
                    "set false"
                )


def _peers_of(settings: StudentsSettings, student: StudentSettings) -> list[ModelSettings]:
    """The peer rankers trained with the student in its arms."""
    arms = [settings.distillation_of(student, arm) for arm in settings.arms]
    return [arm.peer_model for arm in arms if arm.has_peer and arm.peer_model is not None]


def tasks_of(student: StudentSettings, schema: Schema) -> list[str]:
    """The student's tasks; by default the data's main task."""
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
