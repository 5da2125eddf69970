"""Check the weights of further tasks; needs no PyTorch."""

from collections.abc import Callable, Mapping, Sequence

from recsys.config import InputError


def check_task_weights(
    weights: Mapping[str, float], tasks: Sequence[str], where: Callable[[str], str]
) -> None:
    """Check that every weight belongs to one of ``tasks`` other than the first, which is the main
    task.

    Args:
        where: maps a key to the place where the user finds it
            (:meth:`recsys.config.Settings.where`).

    Raises:
        InputError: it does not.
    """
    for task in weights:
        if task not in tasks[1:]:
            further = ", ".join(tasks[1:]) or "none"
            raise InputError(
                f"{where(f'task_weights.{task}')}: weighs further tasks against the main one, "
                f"{tasks[0]}; the further tasks are: {further}"
            )
