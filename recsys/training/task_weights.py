"""A check of settings that needs no PyTorch: the weights of further tasks."""

from collections.abc import Callable, Mapping, Sequence

from recsys.config import InputError


def check_task_weights(
    weights: Mapping[str, float], tasks: Sequence[str], where: Callable[[str], str]
) -> None:
    """Check that every weight is of one of the ``tasks`` that is not the first, the main one.

    Args:
        where: tells of a key where a person finds it (:meth:`recsys.config.Settings.where`).

    Raises:
        InputError: it is not.
    """
    for task in weights:
        if task not in tasks[1:]:
            further = ", ".join(tasks[1:]) or "none"
            raise InputError(
                f"{where(f'task_weights.{task}')}: weighs further tasks against the main one, "
                f"{tasks[0]}; the further tasks are: {further}"
            )
