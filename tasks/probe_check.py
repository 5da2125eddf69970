"""Check that the towers are computed from windows before those that judge the models."""

from recsys.config import InputError
from recsys.evaluation.settings import EvaluateSettings
from recsys.towers.settings import TowersSettings


def check_probe_is_past(towers: TowersSettings, evaluate: EvaluateSettings) -> None:
    """Check that the partition uses no label of a window that judges it.

    Raises:
        InputError: it would use one.
    """
    windows, first = towers.partition.probe_windows, evaluate.first_evaluation_window
    if windows > first:
        raise InputError(
            f"{towers.where('partition.probe_windows')}: the partition would know labels that it "
            f"is judged on; must be at most {first} "
            f"({evaluate.where('first_evaluation_window')}), got {windows}"
        )
