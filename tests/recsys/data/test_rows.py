"""What a model of one domain is shown of the other domains' rows."""

from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.data.ingest import IngestReport
from recsys.data.loader import Batch, WindowReader
from recsys.data.rows import Rows
from recsys.distill.score_log import ScoreLog

Stream = tuple[Path, Path, IngestReport]
EXAMPLE = ("example_id", "domain", "label", "score")


@pytest.fixture(scope="module")
def scores(small_stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> ScoreLog:
    """A log that holds two examples of three."""
    folder = tmp_path_factory.mktemp("scores")
    for window in WindowReader(small_stream[0]).windows:
        ids = pl.read_parquet(small_stream[0] / window.name / "part-*.parquet")["example_id"]
        ids = ids.filter(ids % 3 > 0)
        pl.select(
            example_id=ids,
            logit=ids.cast(pl.Float32) / 100,
            snapshot=pl.lit("s"),
            high_water_mark=pl.lit(window.start_ms, dtype=pl.Int64),
            staleness_ms=pl.lit(1, dtype=pl.Int64),
        ).write_parquet(folder / f"{window.name}.parquet")
    return ScoreLog(folder)


def columns(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Each column of EXAMPLE, and the features, over all batches."""
    found = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in EXAMPLE}
    return found | {
        "dense": torch.cat([batch.dense for batch in batches]),
        "ids": torch.cat(
            [batch.sparse.values().view(len(batch.sparse.keys()), -1).T for batch in batches]
        ),
    }


def shown(stream: Stream, log: ScoreLog, rows: Rows, domain: int, size: int, window: int) -> dict:
    reader = WindowReader(stream[0])
    return columns(
        list(reader.label_batches(reader.windows[window], size, 0, 1, domain, log, rows))
    )


@settings(
    max_examples=10,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(domain=st.integers(0, 2), size=st.integers(200, 3_000), window=st.integers(0, 2))
def test_scores_elsewhere_has_labels_of_its_domain_and_scores_of_the_others(
    small_stream: Stream, scores: ScoreLog, domain: int, size: int, window: int
) -> None:
    found = shown(small_stream, scores, "scores_elsewhere", domain, size, window)
    everyone = shown(small_stream, scores, "all", domain, size, window)
    is_own = found["domain"] == domain
    assert 0 < is_own.sum() < len(is_own)
    assert (torch.isnan(found["label"]) == ~is_own).all()
    assert torch.isfinite(found["score"][~is_own]).all()
    taught = (everyone["domain"] == domain) | torch.isfinite(everyone["score"])
    for name, values in found.items():
        expected = everyone[name][taught]
        if name == "label":
            values, expected = values[is_own], expected[is_own]
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


def test_the_rows_of_its_domain_are_the_same_whatever_else_it_is_shown(
    small_stream: Stream, scores: ScoreLog
) -> None:
    own = shown(small_stream, scores, "own", 1, 700, 1)
    assert (own["domain"] == 1).all()
    for rows in ("scores_elsewhere", "all"):
        found = shown(small_stream, scores, rows, 1, 700, 1)
        is_own = found["domain"] == 1
        for name, values in own.items():
            torch.testing.assert_close(found[name][is_own], values, rtol=0, atol=0, equal_nan=True)


def test_all_is_what_a_model_of_every_domain_is_shown(
    small_stream: Stream, scores: ScoreLog
) -> None:
    reader = WindowReader(small_stream[0])
    found = shown(small_stream, scores, "all", 2, 512, 1)
    expected = columns(list(reader.label_batches(reader.windows[1], 512, 0, 1, None, scores)))
    assert not torch.isnan(found["label"]).any()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=0, equal_nan=True)
