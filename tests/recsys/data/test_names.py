"""A feature may have any name: its column collides with no other, and the way back is known."""

from pathlib import Path

import polars as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.loader import WindowReader
from recsys.data.names import OWN_COLUMNS, feature_column, feature_name
from recsys.data.schema import Window
from recsys.data.settings import DataSettings
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from tests.support.raw_logs import run

TASKS = ["click", "buy"]
ANY_NAME = st.text(max_size=8) | st.sampled_from(
    [*sorted(OWN_COLUMNS), "label", "label_buy", "score_buy", "probability", "a.b", "feature:a.b"]
)


@given(ANY_NAME, ANY_NAME)
def test_two_names_never_share_a_column(one: str, other: str) -> None:
    columns = feature_column(one, TASKS), feature_column(other, TASKS)
    assert (columns[0] == columns[1]) == (one == other)
    assert [feature_name(column) for column in columns] == [one, other]


@given(ANY_NAME)
def test_a_column_is_no_own_one_and_fits_a_module(name: str) -> None:
    column = feature_column(name, TASKS)
    assert column not in {*OWN_COLUMNS, "label", "label_buy", "score", "score_buy", "probability"}
    torch.nn.ModuleDict({column + "_": torch.nn.Identity()})


def test_ordinary_names_stay() -> None:
    names = ["price", "user id", "label_sell", "Ä:1of2", "history[0]", "event_hour", "a/b@c"]
    assert [feature_column(name, TASKS) for name in names] == names


class Scores:
    """Scores of every example, as a log joins them."""

    def join(self, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        return frame.with_columns(
            score=pl.lit(0.5, dtype=pl.Float32), staleness_ms=pl.lit(7, dtype=pl.Int64)
        )


def test_a_log_with_the_projects_names_reaches_the_ranker(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    categories = ["ad.id", "domain", "", "label"]
    log = {
        "event_time": [1_704_067_200 + row for row in range(40)],
        "clicked": [row % 2 for row in range(40)],
        **{name: [f"{name}{row % 3}" for row in range(40)] for name in categories},
        "score": [float(row) for row in range(40)],
        "probability": [0.5] * 40,
    }
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    section = {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "event_time", "unit": "s"},
        "label": "clicked",
        "dense": ["score", "probability"],
        "categorical": [{"column": name, "table_rows": 10} for name in categories],
    }
    run(data_settings, tmp_path, "table", section)
    assert list((tmp_path / "oracle").iterdir()) == []
    reader = WindowReader(tmp_path / "windows")
    batch = next(reader.label_batches(reader.windows[0], 40, 0, 1, scores=Scores()))
    assert batch.score.tolist() == [0.5] * 40
    assert batch.staleness_ms.tolist() == [7] * 40
    ranker = build_ranker(reader.schema, ModelSettings(), None, 1)
    logits = ranker(batch.dense, batch.sparse)["serving"]
    assert logits.shape == (40,)
    assert torch.isfinite(logits).all()
    assert [feature_name(key) for key in batch.sparse.keys()] == categories  # noqa: SIM118
