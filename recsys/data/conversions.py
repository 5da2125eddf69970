"""Conversions in the generated stream: a second task, known for clicked impressions."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys.config import Settings

CONVERSION = "conversion"
BISECTION_STEPS = 60


class ConversionSettings(Settings):
    """The second task of the generated stream, ``conversion``: whether a click is followed by a
    purchase.

    Attributes:
        rate: mean probability that a click converts, over all impressions.
        strength: strength of the ids' own effects on conversions, in logits.
        click_strength: how many times the click's logit is added, which relates the two tasks.
        labelled: impressions: every example has the label clicked-and-converted (CTCVR); clicks:
            only clicked examples have a label, converted (CVR).
    """

    rate: Annotated[float, Field(gt=0, lt=1)]
    strength: float
    click_strength: float
    labelled: Literal["impressions", "clicks"]


class Conversions:
    """The probability that a click converts: sigmoid(intercept + effects of the ids + a share of
    the click's logit).

    Args:
        sizes: ids of each feature that has an effect.
        random: draws the effects.
        sample: ids by feature and the click's logit [N], for rows whose mean is calibrated to
            ``settings.rate``.
    """

    def __init__(
        self,
        settings: ConversionSettings,
        sizes: dict[str, int],
        random: np.random.Generator,
        sample: list[tuple[dict[str, np.ndarray], np.ndarray]],
    ) -> None:
        self.settings = settings
        self._effects = {name: random.standard_normal(size) for name, size in sizes.items()}
        logit = np.concatenate([self._logit(ids, click_logit) for ids, click_logit in sample])
        self._intercept = intercept(logit, settings.rate)

    def add(self, frame: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
        """``frame``, which has ids and the click's label and probability, with the conversion's
        label and probability added.

        ``label_conversion`` is float32, null where there is none. ``probability_conversion``,
        float64, is the probability of that label: of click and conversion with labels on
        impressions, of conversion given a click with labels on clicks.
        """
        click = frame["probability"].to_numpy()
        ids = {name: frame[name].to_numpy() for name in self._effects}
        logit = self._logit(ids, np.log(click) - np.log1p(-click)) + self._intercept
        probability = 1.0 / (1.0 + np.exp(-logit))
        converted = (random.random(frame.height) < probability).astype(np.float32)
        clicked = frame["label"].to_numpy()
        if self.settings.labelled == "clicks":
            label = np.where(clicked > 0, converted, np.float32("nan"))
        else:
            label, probability = clicked * converted, click * probability
        return frame.with_columns(
            pl.Series(f"label_{CONVERSION}", label, dtype=pl.Float32, nan_to_null=True),
            pl.Series(f"probability_{CONVERSION}", probability),
        )

    def _logit(self, ids: Mapping[str, np.ndarray], click_logit: np.ndarray) -> np.ndarray:
        """[N] float64, without the intercept."""
        own = sum(
            (effects[ids[name]] for name, effects in self._effects.items()),
            np.zeros(len(click_logit)),
        )
        own /= np.sqrt(len(self._effects))
        return self.settings.strength * own + self.settings.click_strength * click_logit


def intercept(logit: np.ndarray, base_rate: float) -> float:
    """The constant that must be added to ``logit`` [N] for a mean probability of ``base_rate``."""
    low, high = -30.0, 30.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        too_high = np.mean(1.0 / (1.0 + np.exp(-logit - middle))) > base_rate
        low, high = (low, middle) if too_high else (middle, high)
    return (low + high) / 2
