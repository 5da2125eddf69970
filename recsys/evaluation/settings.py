"""Settings of the evaluate stage."""

from typing import Literal

from pydantic import Field

from recsys.config import InputError, Settings
from recsys.evaluation.gate import GateSettings


class EvaluateSettings(Settings):
    """How the students are compared.

    Attributes:
        first_evaluation_window: index of the first window that counts in the headline numbers.
        bootstrap_samples: draws behind each interval.
        blocks: what the bootstrap draws, since rows within one are not independent: groups (users),
            hours of event time, or windows; a student's seeds are drawn as well.
        confidence: two-sided coverage of the intervals.
        seed: seed of the draws.
        gate: what a student must achieve before it becomes champion.
    """

    first_evaluation_window: int = Field(default=4, ge=0)
    bootstrap_samples: int = Field(default=500, ge=10)
    blocks: Literal["group", "hour", "window"] = "group"
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=1, ge=0, lt=2**63)
    gate: GateSettings = GateSettings()


def check_evaluated(settings: EvaluateSettings, windows: int) -> None:
    """Check that at least one of ``windows`` windows is evaluated.

    Raises:
        InputError: none is.
    """
    if settings.first_evaluation_window >= windows:
        raise InputError(
            f"{settings.where('first_evaluation_window')}: must be below the number of windows "
            f"{windows}, got {settings.first_evaluation_window}"
        )
