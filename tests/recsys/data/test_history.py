"""Histories hold what the user had clicked, as far as it was known before the event, in the order
it became known."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import InputError
from recsys.data.collisions import TableUse
from recsys.data.encoding import hash_to_rows
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.names import OWN
from recsys.data.schema import Schema
from recsys.data.settings import (
    ClickHistorySettings,
    DatasetSettings,
    DataSettings,
    HistorySettings,
)
from recsys.data.sources.history import HISTORY, HistoryState, add_history

TABLE_ROWS = 1000
STRENGTH = 2.0

Row = tuple[int, int, int, str | None, str]  # event_time, delay, label, user, item
USERS, ITEMS = st.sampled_from(["u", "v", None]), st.sampled_from("abc")
ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(0, 1), USERS, ITEMS), max_size=40
)


def known_clicks(rows: pl.DataFrame, user: str, item: str, length: int) -> list[list[Any]]:
    """The slow way: for each row look at all the others."""
    clicks = [row for row in rows.iter_rows(named=True) if row["label"] == 1]
    clicks.sort(key=lambda click: (click["label_time"], click["example_id"]))
    return [
        [
            click[item]
            for click in clicks
            if row[user] is not None
            and click[user] == row[user]
            and click["label_time"] < row["event_time"]
        ][-length:]
        for row in rows.iter_rows(named=True)
    ]


@pytest.mark.slow
@settings(max_examples=200, derandomize=True)
@given(rows=ROWS, length=st.integers(1, 4), cut=st.integers(0, 40))
def test_a_log_gets_the_last_clicks_known_before_each_event(
    rows: list[Row], length: int, cut: int
) -> None:
    ordered = sorted(rows, key=lambda row: row[0])
    frame = pl.DataFrame(
        {
            "example_id": range(len(ordered)),
            "event_time": [row[0] for row in ordered],
            "label_time": [row[0] + row[1] for row in ordered],
            "label": [float(row[2]) for row in ordered],
            "user": pl.Series([row[3] for row in ordered], dtype=pl.String),
            "item": pl.Series([row[4] for row in ordered], dtype=pl.String),
        },
        schema_overrides={
            "example_id": pl.Int64,
            "event_time": pl.Int64,
            "label_time": pl.Int64,
            "label": pl.Float64,
        },
    )
    wanted = known_clicks(frame, "user", "item", length)
    hashed = [hash_to_rows(pl.Series(one, dtype=pl.String), TABLE_ROWS).to_list() for one in wanted]
    chosen = HistorySettings(user="user", item="item", length=length, table_rows=TABLE_ROWS)
    own = ["example_id", "event_time", "label_time", "label"]
    named = frame.rename({name: f"{OWN}{name}" for name in own})
    state, use = HistoryState(), TableUse("history", TABLE_ROWS)
    found = pl.concat(
        add_history(part, chosen, [], use, state) for part in (named[:cut], named[cut:])
    )
    assert found[HISTORY].to_list() == hashed
    assert found.drop(HISTORY).equals(named)


def section(**changes: Any) -> dict[str, Any]:
    history = {"user": "reader", "item": "article", "length": 3, "table_rows": TABLE_ROWS}
    return {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "time", "unit": "ms", "earliest": "1970-01-01"},
        "explode": {"shown": "seen", "clicked": "hit", "item": "article"},
        "dense": ["shown_count"],
        "categorical": [{"column": "article", "table_rows": TABLE_ROWS}],
        "history": history | changes,
    }


def write_impressions(folder: Path) -> None:
    hour = 3_600_000
    pl.DataFrame(
        {
            "time": [hour, 2 * hour, 3 * hour, 3 * hour],
            "reader": [7, 7, 7, 8],
            "seen": [[1, 2], [2, 3], [1, 4], [5]],
            "hit": [[2], [3, 2], [1], [5]],
        }
    ).write_parquet(folder / "log.parquet")


def ingest_table(data: DataSettings, folder: Path, table: dict[str, Any]) -> None:
    write_impressions(folder)
    dataset = DatasetSettings.model_validate({"format": "table", "table": table})
    ingest(
        data.model_copy(update={"root": str(folder), "dataset": "log"}),
        dataset,
        folder / "w",
        folder / "o",
    )


def test_impressions_get_the_articles_clicked_in_earlier_ones(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    ingest_table(data_settings, tmp_path, section())
    rows = pl.read_parquet(tmp_path / "w" / "*" / "part-*.parquet")
    article = dict(
        zip(range(1, 6), hash_to_rows(pl.Series(range(1, 6)), TABLE_ROWS).to_list(), strict=True)
    )
    second, third = [article[2]], [article[2], article[2], article[3]]
    assert rows["history"].to_list() == [[], [], second, second, third, third, []]
    feature = Schema.load(tmp_path / "w").categorical[-1]
    assert (feature.name, feature.num_embeddings, feature.kind) == ("history", TABLE_ROWS, "list")
    batch = next(
        WindowReader(tmp_path / "w").event_batches(
            WindowReader(tmp_path / "w").windows[0], 10, 0, 1
        )
    )
    assert batch.sparse["history"].values().tolist() == [*second, *second, *third, *third]
    assert batch.sparse["history"].lengths().tolist() == [0, 0, 1, 1, 3, 3, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": "raeder"}, "no column 'raeder'; did you mean 'reader'"),
        ({"name": "shown_count"}, "feature 'shown_count' is listed twice (in dense and history)"),
    ],
)
def test_mistakes_are_one_line(
    data_settings: DataSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        ingest_table(data_settings, tmp_path, section(**change))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def streams(
    tmp_path_factory: pytest.TempPathFactory,
    data_settings: DataSettings,
    small_dataset: DatasetSettings,
) -> dict[str, pl.DataFrame]:
    """The rows of a small generated stream with their true probabilities, without and with a
    history."""
    assert small_dataset.synthetic is not None
    busy = {"rows": 6_000, "windows": 3, "chunk_rows": 700, "users": 40, "ads": 30}
    domains = [one.model_copy(update={"base_rate": 0.2}) for one in small_dataset.synthetic.domains]
    history = ClickHistorySettings(length=5, strength=STRENGTH, dimension=3)
    found = {}
    for name, chosen in (("plain", None), ("history", history)):
        stream = small_dataset.synthetic.model_copy(
            update={**busy, "domains": domains, "history": chosen}
        )
        folder = tmp_path_factory.mktemp(name)
        dataset = small_dataset.model_copy(update={"synthetic": stream})
        ingest(data_settings, dataset, folder / "windows", folder / "oracle")
        rows = pl.read_parquet(folder / "windows" / "*" / "part-*.parquet")
        found[name] = rows.join(
            pl.read_parquet(folder / "oracle" / "*.parquet"), on="example_id", maintain_order="left"
        )
    return found


def test_the_generated_stream_has_each_users_known_clicks(streams: dict[str, pl.DataFrame]) -> None:
    rows = streams["history"]
    wanted = [
        one
        for user in rows.partition_by("user_id")
        for one in zip(user["example_id"], known_clicks(user, "user_id", "ad_id", 5), strict=True)
    ]
    assert rows["history"].to_list() == [history for _, history in sorted(wanted)]
    lengths = rows["history"].list.len().to_numpy()
    assert (lengths == 0).any() and (lengths == 5).mean() > 0.5


def test_the_oracle_knows_what_the_history_does(streams: dict[str, pl.DataFrame]) -> None:
    plain, rows = streams["plain"], streams["history"]
    same = [name for name in plain.columns if name not in ("label", "probability")]
    assert rows.select(same).equals(plain.select(same))  # all that is drawn but the labels
    logits = [np.log(p / (1 - p)) for p in (one["probability"].to_numpy() for one in (plain, rows))]
    effect = logits[1] - logits[0]
    empty = (rows["history"].list.len() == 0).to_numpy()
    clicked_before = (
        rows.select(pl.col("history").list.contains(pl.col("ad_id"))).to_series().to_numpy()
    )
    assert np.abs(effect[empty]).max() < 1e-9
    # Nothing is as like an ad as itself
    np.testing.assert_allclose(effect[clicked_before], STRENGTH, atol=1e-9)
    others = effect[~empty & ~clicked_before]
    assert others.max() < STRENGTH and others.min() >= -STRENGTH and others.std() > 0.1
    assert rows["label"].mean() == pytest.approx(rows["probability"].mean(), abs=0.02)
