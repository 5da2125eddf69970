"""Conversions of the generated stream: a second task, known where an impression was clicked."""

import numpy as np
import polars as pl

from recsys.data.settings import ConversionSettings

CONVERSION = "conversion"
BISECTION_STEPS = 60


class Conversions:
    """The probability that a click converts: sigmoid(intercept + effects of the ids + a share of the click's logit).

    Args:
        sizes: ids of each feature.
        random: draws the effects.
        sample: ids by feature and the click's logit [N] of rows on which the mean is made ``settings.rate``.
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

    def columns(
        self,
        random: np.random.Generator,
        ids: dict[str, np.ndarray],
        click_logit: np.ndarray,
        click_probability: np.ndarray,
        clicked: np.ndarray,
    ) -> dict[str, pl.Series]:
        """``label_conversion`` [N] float32, null where there is none, and ``probability_conversion`` [N] float64.

        The probability is that of the label: of both on impressions, given a click on clicks.
        """
        probability = 1.0 / (1.0 + np.exp(-self._logit(ids, click_logit) - self._intercept))
        converted = (random.random(len(click_logit)) < probability).astype(np.float32)
        if self.settings.labelled == "clicks":
            label = np.where(clicked > 0, converted, np.float32("nan"))
        else:
            label, probability = clicked * converted, click_probability * probability
        label_column, probability_column = f"label_{CONVERSION}", f"probability_{CONVERSION}"
        return {
            label_column: pl.Series(label_column, label, dtype=pl.Float32, nan_to_null=True),
            probability_column: pl.Series(probability_column, probability),
        }

    def _logit(self, ids: dict[str, np.ndarray], click_logit: np.ndarray) -> np.ndarray:
        own = sum((effects[ids[name]] for name, effects in self._effects.items()), np.zeros(len(click_logit)))
        own /= np.sqrt(len(self._effects))
        return self.settings.strength * own + self.settings.click_strength * click_logit


def intercept(logit: np.ndarray, base_rate: float) -> float:
    """The number that, added to ``logit`` [N], makes the mean probability ``base_rate``."""
    low, high = -30.0, 30.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        too_high = np.mean(1.0 / (1.0 + np.exp(-logit - middle))) > base_rate
        low, high = (low, middle) if too_high else (middle, high)
    return (low + high) / 2
