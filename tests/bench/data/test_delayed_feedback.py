"""What the benchmark of late labels gives to a model."""

from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
import torch

from bench.data.delayed_feedback import again, importance, label_times
from recsys.models.ranker import SERVING

HOUR_MS = 3_600_000
ROWS = pl.DataFrame(
    {"example_id": [0, 1, 2], "event_time": [0, 0, 0], "label": [1.0, 1.0, 0.0]}
    | {"delay_h": [1.0, 30.0, 2.0]}
)


def test_a_late_positive_is_first_a_negative_and_then_comes_again() -> None:
    rows = again(6.0)(ROWS).select("example_id", "label", pl.col("known") // HOUR_MS).rows()
    assert sorted(rows) == [(0, 1.0, 6.0), (1, 0.0, 6.0), (1, 1.0, 30.0), (2, 0.0, 6.0)]


def test_by_label_times_a_positive_is_learnt_before_its_negatives() -> None:
    rows = label_times(ROWS).select("example_id", pl.col("known") // HOUR_MS).rows()
    assert rows == [(0, 1.0), (1, 30.0), (2, 72.0)]


@pytest.mark.parametrize("late_share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("chance", [0.05, 0.5])
def test_the_weighted_mean_over_what_is_seen_is_the_true_loss(
    late_share: float, chance: float
) -> None:
    # Seen: real negatives, late positives as negatives, and every positive as such
    seen = torch.tensor([1 - chance, chance * late_share, chance], dtype=torch.float64)
    label = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    logit = torch.full((3,), chance, dtype=torch.float64).logit()
    batch = cast(Any, SimpleNamespace(label=label))
    weighted = importance(late_share)({SERVING: logit}, batch)
    p = torch.tensor(chance, dtype=torch.float64)
    truth = -(p * p.log() + (1 - p) * (1 - p).log())
    assert (seen * weighted).sum() / seen.sum() == pytest.approx(truth.item())
