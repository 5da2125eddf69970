"""From the raw row to the probability: a served student predicts as it did while it was trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.training_job import TrainingJob
from recsys.serving.predictor import Predictor
from tests.support.raw_logs import run
from tests.support.toy_stream import MODEL, TRAIN

WINDOWS, ROWS = 3, 150
FIRST_S, HOUR_S = 1_704_067_200, 3_600
STUDENTS = StudentsSettings(
    model=MODEL,
    seeds=[1],
    students=[StudentSettings(name="one", domain="feed")],
    table_learning_rate=None,
    arms={"plain": DistillationSettings(mode="none")},
)
SECTION: dict[str, Any] = {
    "files": ["log.parquet"],
    "file_format": "parquet",
    "time": {"column": "ts", "unit": "s"},
    "label": "clicked",
    "domain": {"column": "site", "values": {"f": "feed"}, "other": "rest"},
    "dense": ["price"],
    "categorical": [
        {"column": "user", "table_rows": 40},
        {"column": "query", "table_rows": 9, "encoding": {"kind": "vocabulary", "min_count": 20}},
        {"column": "tags", "table_rows": 20, "kind": "list"},
        {"column": "event_hour", "table_rows": 30},
    ],
    "crosses": [{"columns": ["user", "query"], "table_rows": 90}],
    "counters": [{"by": ["query"], "bin_minutes": 10, "hours": [1]}],
    "history": {"user": "user", "item": "query", "length": 3, "table_rows": 40},
}


def log() -> pl.DataFrame:
    """Raw rows of three hours, with missing values; some queries appear in the last one only."""
    draw, count = np.random.default_rng(3), WINDOWS * ROWS
    hour = np.arange(count) // ROWS
    query = [f"q{draw.integers(0, 5 + 4 * (one == 2))}" + "x" * draw.integers(2) for one in hour]
    frame = pl.DataFrame(
        {
            "ts": FIRST_S + np.sort(draw.integers(HOUR_S, size=count) + HOUR_S * hour),
            "clicked": draw.integers(2, size=count),
            "site": draw.choice(["f", "g", "h"], size=count),
            "price": np.round(draw.lognormal(2, 2, size=count), 2),
            "user": draw.integers(30, size=count),
            "query": query,
            "tags": [[f"t{one}" for one in draw.integers(6, size=draw.integers(3))] for _ in hour],
        },
        schema_overrides={"tags": pl.List(pl.String)},
    )
    known = pl.Series(draw.random(count) < 0.9)
    return frame.with_columns(pl.when(known).then(pl.col("price", "query")))


def student(folder: Path, rows: pl.DataFrame) -> Path:
    """The folder of a student that was trained on ``rows``, window by window."""
    folder.mkdir()
    rows.write_parquet(folder / "log.parquet")
    run(DataSettings(window_hours=1), folder, "table", SECTION)
    (folder / "students").mkdir()
    train_students(TrainingJob(folder / "windows", STUDENTS, TRAIN, folder / "students"))
    return folder / "students/one/plain"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of which has not seen the last window."""
    folder = tmp_path_factory.mktemp("raw")
    student(folder / "before", log().filter(pl.col("ts") < FIRST_S + 2 * HOUR_S))
    student(folder / "all", log())
    return folder


@pytest.fixture
def predictor(root: Path) -> Predictor:
    """Of the run that has not seen the last window."""
    return Predictor.load(root / "before/students/one/plain/export")


@pytest.fixture
def raw(root: Path) -> pl.DataFrame:
    """The last window's rows of feed as the log has them, with what a caller gives beside."""
    window = Schema.load(root / "all/windows").windows[-1].name
    part = pl.read_parquet(root / "all/windows" / window / "part-*.parquet")
    rows = log().filter(pl.col("ts") >= FIRST_S + 2 * HOUR_S)
    made = [name for name in part.columns if name.startswith(("query_", "history"))]
    return rows.hstack(part.select(made)).filter(pl.col("site") == "f")


def test_counts_that_are_not_given_are_those_at_the_end_of_the_log(
    predictor: Predictor, raw: pl.DataFrame
) -> None:
    soon = raw.filter(pl.col("ts") < FIRST_S + 2 * HOUR_S + 600)  # in the next bin of 10 minutes
    counted = [name for name in raw.columns if name.startswith("query_")]
    expected = predictor.predict(soon)
    assert soon.height > 3
    assert soon[counted].n_unique() > 3
    without = soon.drop(counted)
    for given in (without, without.to_pandas(), without.to_dicts()):
        assert predictor.predict(given).tolist() == expected.tolist()
    one_lacks = [*soon[:1].to_dicts(), *without[1:].to_dicts()]
    assert predictor.predict(one_lacks).tolist() == expected.tolist()
    shared = {"user": 3, "query": soon["query"][0]}
    rows = [{"price": price, "site": "f", "ts": soon["ts"][0]} for price in (1.0, 2.0)]
    assert len(set(predictor.rank(shared, rows)["click"])) == 2
    assert all(name not in row for row in predictor.example_rows() for name in counted)


def test_predictions_are_those_of_training(
    root: Path, predictor: Predictor, raw: pl.DataFrame
) -> None:
    window = Schema.load(root / "all/windows").windows[-1].name
    trained = pl.read_parquet(
        root / f"all/students/one/plain/seed-1/predictions/{window}.parquet"
    ).sort("example_id")
    expected = 1 / (1 + np.exp(-trained["logit"].cast(pl.Float64).to_numpy()))
    assert raw.height == trained.height > 30
    table = raw.to_pandas()
    rows = raw.to_dicts()
    for given in (raw, table, rows, raw.to_dict(as_series=False)):
        assert predictor.predict(given, calibrated=False) == pytest.approx(expected, abs=1e-6)
    alone = [predictor.predict([row], calibrated=False)[0] for row in rows]
    assert alone == pytest.approx(expected, abs=1e-6)
    records = [predictor.predict(pd.DataFrame([row]), calibrated=False)[0] for row in rows[:20]]
    assert records == pytest.approx(expected[:20], abs=1e-6)


def test_what_may_be_missing_may_be_left_out(predictor: Predictor, raw: pl.DataFrame) -> None:
    optional = [column.name for column in predictor.raw_columns if column.optional]
    counted = [f"query_{name}" for name in ("clicks_1h", "examples_1h", "log_rate_1h", "age")]
    assert optional == ["price", *counted, "query", "tags", "history", "site"]
    filled = raw.with_columns(pl.lit(None).alias(name) for name in optional[:-1])
    expected = predictor.predict(filled)
    np.testing.assert_array_equal(predictor.predict(raw.drop(optional)), expected)
    for name in ("user", "ts"):
        with pytest.raises(InputError, match=f"column '{name}' is missing"):
            predictor.predict(raw.drop(name))


def test_a_new_category_is_what_training_calls_unknown(
    root: Path, predictor: Predictor, raw: pl.DataFrame
) -> None:
    new, newer = (raw.with_columns(query=pl.lit(text)) for text in ("never met", "neither"))
    place = next(one.name for one in predictor.format.ids if one.columns == ["query"])
    encoder = Encoder.load(root / "before/windows")
    assert encoder.encode(new)[place].unique().to_list() == [1]
    assert encoder.encode(newer)[place].unique().to_list() == [1]
    assert (predictor.predict(new) != predictor.predict(raw)).any()


def test_other_domains_are_refused_by_name(predictor: Predictor, raw: pl.DataFrame) -> None:
    expected = predictor.predict(raw)
    for same in ("feed", "f"):
        told = raw.with_columns(site=pl.lit(same))
        np.testing.assert_array_equal(predictor.predict(told), expected)
    named = raw.drop("site").with_columns(domain=pl.lit("feed"))
    np.testing.assert_array_equal(predictor.predict(named), expected)
    for other in ("g", "rest", None):
        with pytest.raises(InputError, match=r"to other domains, such as rest; .* serves feed"):
            predictor.predict(raw.with_columns(site=pl.lit(other)))
