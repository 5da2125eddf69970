"""One pass in bounded memory has the metrics and intervals of all rows held in memory."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.evaluation import pairs
from recsys.evaluation.metrics import METRICS, compute_metrics, probabilities
from recsys.evaluation.pairs import compare_sources
from recsys.evaluation.resampling import resample
from recsys.evaluation.streamed import Rows, stream_metrics
from tests.support.predictions import SETTINGS

ROWS = 20_000
EXACT = [METRICS.index(name) for name in ("ne", "logloss", "calibration")]
BINNED = [METRICS.index(name) for name in ("auc", "pr_auc", "ece", "recall")]


def stream(groups: int) -> tuple[np.ndarray, np.ndarray, dict[str, list[np.ndarray]]]:
    generator = np.random.default_rng(5)
    truth = generator.normal(-1, 1, size=ROWS)
    labels = (generator.random(ROWS) < probabilities(truth)).astype(np.float32)
    noisy = [(truth + generator.normal(size=ROWS)).astype(np.float32) for _ in range(3)]
    logits = {"noisy": noisy[:2], "single": noisy[2:]}
    return labels, generator.integers(0, groups, size=ROWS), logits


def parts(
    labels: np.ndarray,
    blocks: np.ndarray,
    logits: dict[str, list[np.ndarray]],
    weights: np.ndarray | None = None,
) -> list[Rows]:
    return [
        Rows(
            labels[start : start + 7_000],
            blocks[start : start + 7_000],
            {name: [one[start : start + 7_000] for one in own] for name, own in logits.items()},
            None if weights is None else weights[start : start + 7_000],
        )
        for start in range(0, ROWS, 7_000)
    ]


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_are_those_of_all_rows(weighted: bool) -> None:
    labels, groups, logits = stream(groups=4_000)
    weights = np.random.default_rng(6).uniform(0.5, 9, size=ROWS) if weighted else None
    rows, measured, _ = stream_metrics(parts(labels, groups, logits, weights), 10, seed=1)
    assert rows == ROWS
    for name, own in logits.items():
        for one, found in zip(own, measured[name], strict=True):
            expected = compute_metrics(one, labels, groups, weights).as_dict()
            for metric in ("ne", "logloss", "calibration"):
                assert found[metric] == pytest.approx(expected[metric], rel=1e-9)
            # Where rows have weights, bins of equal weight are none of equally many rows
            for metric in ("auc", "pr_auc", "recall", *([] if weighted else ["ece"])):
                assert found[metric] == pytest.approx(expected[metric], abs=3e-4)
            assert np.isnan(found["gauc"])


def test_intervals_are_as_wide_as_those_of_blocks_drawn_one_by_one() -> None:
    labels, groups, logits = stream(groups=4_000)
    _, _, drawn = stream_metrics(parts(labels, groups, logits), 400, seed=1)
    expected = resample(logits, labels, groups, 400, seed=2)
    found = drawn["noisy"] - drawn["single"]
    apart = expected["noisy"] - expected["single"]
    ratio = found.std(axis=0) / apart.std(axis=0)
    assert ratio[EXACT] == pytest.approx(1, abs=0.2)
    assert ratio[BINNED] == pytest.approx(1, abs=0.3)
    assert np.isnan(found[:, METRICS.index("gauc")]).all()


def test_ties_and_what_is_beyond_the_bins_count_one_half() -> None:
    labels = np.array([0, 1, 0, 1, 1, 0], dtype=np.float32)
    infinity = np.float32("inf")
    logits = np.array([-infinity, -infinity, 100, infinity, 0, 0], dtype=np.float32)
    _, measured, _ = stream_metrics([Rows(labels, np.arange(6), {"a": [logits]})], 10, seed=1)
    assert measured["a"][0]["auc"] == pytest.approx(0.5)
    constant = np.full(6, 50, dtype=np.float32)
    _, measured, _ = stream_metrics([Rows(labels, np.arange(6), {"a": [constant]})], 10, seed=1)
    assert measured["a"][0]["recall"] == pytest.approx(0.1)
    logits[0] = np.nan
    _, measured, drawn = stream_metrics([Rows(labels, np.arange(6), {"a": [logits]})], 10, seed=1)
    assert all(np.isnan(measured["a"][0][name]) for name in METRICS)
    assert np.isnan(drawn["a"]).all()


def test_predictions_of_many_rows_are_compared_without_holding_them(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = run_dir / "students/feed"
    arms = students / "plain", students / "distilled"
    [held] = compare_sources(*arms, SETTINGS, first_window=1)
    monkeypatch.setattr(pairs, "ROWS_IN_MEMORY", 100)
    monkeypatch.setattr(pairs, "ROWS_AT_ONCE", 70)
    [streamed] = compare_sources(*arms, SETTINGS, first_window=1)
    assert (streamed.rows, streamed.seeds) == (held.rows, held.seeds)
    for place in EXACT:
        one, other = streamed.comparisons[place], held.comparisons[place]
        assert one.difference == pytest.approx(other.difference, abs=1e-9)
    assert streamed.comparisons[0].high < 0
    path = students / "distilled/seed-2/predictions/w2.parquet"
    pl.read_parquet(path).reverse().write_parquet(path)
    with pytest.raises(InputError, match=r"seed-2.*w2\.parquet: rows differ in example_id, or in"):
        compare_sources(*arms, SETTINGS, first_window=1)
