"""The mean label of each domain so far."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from recsys.data.loader import Batch
from recsys.data.schema import Schema

PRIOR_ROWS = 20.0  # at the first window's base rate
SMALLEST_RATE = 1e-4


def starting_logits(schema: Schema) -> NDArray[np.float64]:
    """Logits of each domain's base rate in the first window: [number of domains]."""
    rates = schema.domain_base_rates or [schema.initial_base_rate] * len(schema.domains)
    return logit(np.clip(rates, SMALLEST_RATE, 1 - SMALLEST_RATE))


class BaseRate:
    """Predicts the click rate of the example's domain so far."""

    def __init__(self, schema: Schema) -> None:
        self._clicks = PRIOR_ROWS * expit(starting_logits(schema))
        self._rows = np.full(len(schema.domains), PRIOR_ROWS)

    def predict(self, batch: Batch) -> NDArray[np.floating]:
        """Logits [B]."""
        return logit(self._clicks / self._rows)[batch.domain.numpy()]

    def learn(self, batch: Batch) -> None:
        """Count examples whose labels have become known."""
        domain, count = batch.domain.numpy(), len(self._rows)
        weight = batch.weight.numpy()
        self._rows += np.bincount(domain, weight, minlength=count)
        self._clicks += np.bincount(domain, weight * batch.label.numpy(), minlength=count)
