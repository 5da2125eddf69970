"""What is exported predicts what was trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from recsys.config import InputError
from recsys.data.loader import batch_of
from recsys.data.schema import CategoricalFeature, Schema, Window
from recsys.data.standardise import Standard
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.serving.export import export_ranker
from recsys.serving.predictor import ROWS_AT_ONCE, Predictor

ROWS = 50
FEATURES = [
    CategoricalFeature("user", 30),
    CategoricalFeature("ad", 20),
    CategoricalFeature("history", 20, "list"),
]
SCHEMA = Schema(
    "toy", ["price"], FEATURES, ["all"], [Window("w0", 0, 10, ROWS, 0)], 0.1, {"user": "a"}
)
PARTITION = Partition("manual", [["user"], ["ad", "history"]], ["user", "ad", "history"])


@pytest.fixture
def frame() -> pl.DataFrame:
    generator = np.random.default_rng(2)
    lists = [generator.integers(20, size=generator.integers(4)).tolist() for _ in range(ROWS)]
    columns = {
        "price": [None, *generator.normal(size=ROWS - 1)],
        "user": generator.integers(30, size=ROWS),
        "ad": generator.integers(20, size=ROWS),
        "history": pl.Series(lists, dtype=pl.List(pl.Int64)),
    }
    return pl.DataFrame(columns)


@pytest.mark.parametrize(
    ("architecture", "towers"), [("dlrm", False), ("dcn", False), ("dlrm", True), ("dcn", True)]
)
def test_predictor_equals_the_ranker(
    tmp_path: Path, frame: pl.DataFrame, architecture: Literal["dlrm", "dcn"], towers: bool
) -> None:
    settings = ModelSettings(
        architecture=architecture,
        towers=towers,
        embedding_dimension=4,
        dense_layers=[8],
        over_layers=[8],
    )
    partition = PARTITION if towers else None
    ranker = build_ranker(SCHEMA, settings, partition, seed=7)
    export_ranker(ranker.state_dict(), SCHEMA, settings, tmp_path, partition)
    meta = {
        name: pl.lit(0)
        for name in ("example_id", "event_time", "label_time", "domain", "group", "label")
    }
    batch = batch_of(frame.with_columns(**meta), SCHEMA, np.ones(ROWS, np.float32), ROWS)
    with torch.no_grad():
        expected = torch.sigmoid(ranker(batch.dense, batch.sparse)["serving"].double()).numpy()
    predictor = Predictor.load(tmp_path)
    assert predictor.predict(frame.with_columns(domain=pl.lit(0))) == pytest.approx(
        expected, abs=1e-12
    )
    assert predictor.schema.windows == []


def test_export_is_reproducible(tmp_path: Path) -> None:
    settings = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
    for name in ("a", "b"):
        export_ranker(
            build_ranker(SCHEMA, settings, None, 7).state_dict(), SCHEMA, settings, tmp_path / name
        )
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


DOMAINS = ["feed", "video"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Of two domains, with standardised dense features."""
    return exported(tmp_path_factory.mktemp("both"), None)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The same ranker, exported as the student of one domain."""
    return exported(tmp_path_factory.mktemp("video"), "video")


def exported(folder: Path, domain: str | None) -> Predictor:
    schema = replace(SCHEMA, domains=DOMAINS, serving_standard=Standard([0.1], [0.9], 5.0))
    settings = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
    generator = torch.Generator().manual_seed(3)
    state = {  # a fresh ranker predicts the base rate whatever the row
        name: torch.normal(0, 0.5, value.shape, generator=generator)
        for name, value in build_ranker(schema, settings, None, 7).state_dict().items()
    }
    export_ranker(state, schema, settings, folder, domain=domain)
    return Predictor.load(folder)


@pytest.fixture
def rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows with the domain, as ingest writes them."""
    return frame.with_columns(domain=pl.lit(1))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e300, None])
def test_a_dense_value_that_is_no_number_is_missing(
    predictor: Predictor, rows: pl.DataFrame, value: float | None
) -> None:
    changed = rows.with_columns(price=pl.lit(value, dtype=pl.Float64))
    missing = rows.with_columns(price=pl.lit(None, dtype=pl.Float32))
    expected = predictor.predict(missing)
    assert (expected != predictor.predict(rows)).sum() == ROWS - 1  # the first one is missing
    np.testing.assert_array_equal(predictor.predict(changed), expected)
    np.testing.assert_array_equal(predictor.predict(changed.to_pandas()), expected)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (-1, r"'domain': ids must be in \[0, 2\) \(feed, video\), got -1"),
        (99, "got 99"),
        (None, "'domain' holds null"),
        (float("nan"), "'domain' holds null"),
        (0.5, "got 0.5"),
        ("video", "'domain' holds String; expected ids"),
    ],
)
def test_a_domain_that_does_not_exist_is_named(
    predictor: Predictor, video: Predictor, rows: pl.DataFrame, domain: object, message: str
) -> None:
    changed = rows.with_columns(domain=pl.lit(domain))
    for one in (predictor, video):
        with pytest.raises(InputError, match=message):
            one.predict(changed)


def test_a_student_serves_its_own_domain_alone(
    predictor: Predictor, video: Predictor, rows: pl.DataFrame
) -> None:
    expected = predictor.predict(rows)
    np.testing.assert_array_equal(video.predict(rows), expected)
    np.testing.assert_array_equal(video.predict(rows.drop("domain")), expected)
    assert (predictor.predict(rows.with_columns(domain=pl.lit(0))) != expected).all()
    mixed = rows.with_columns(domain=pl.Series([0, *[1] * (ROWS - 1)]))
    with pytest.raises(InputError, match=r"1 of 50 rows .* 0 \(feed\); .* serves 1 \(video\)"):
        video.predict(mixed)
    with pytest.raises(InputError, match="'domain' is missing"):
        predictor.predict(rows.drop("domain"))


def test_an_export_that_does_not_say_its_domain_serves_all(
    tmp_path: Path, predictor: Predictor, rows: pl.DataFrame
) -> None:
    exported(tmp_path, "video")
    description = json.loads((tmp_path / "model.json").read_text())
    del description["domain"]
    (tmp_path / "model.json").write_text(json.dumps(description))
    old = Predictor.load(tmp_path)
    for domain in (0, 1):
        one = rows.with_columns(domain=pl.lit(domain))
        np.testing.assert_array_equal(old.predict(one), predictor.predict(one))


def test_unread_columns_may_hold_anything(predictor: Predictor, rows: pl.DataFrame) -> None:
    expected = predictor.predict(rows)
    more = rows.with_columns(
        pl.lit("a7f3").alias("example_id"),
        pl.lit("yesterday").alias("event_time"),
        pl.lit(None).alias("group"),
        pl.lit("no").alias("label"),
        pl.lit(0.5).alias("score"),
    )
    np.testing.assert_array_equal(predictor.predict(more), expected)
    table = more.to_pandas()
    table["mixed"] = [1, "a", *[None] * (ROWS - 2)]
    table.insert(0, "group", "twice", allow_duplicates=True)
    table[7] = 0
    np.testing.assert_array_equal(predictor.predict(table), expected)


@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt8, pl.UInt64, pl.Float64, pl.Decimal(9, 2)])
def test_ids_of_any_type_of_number(
    predictor: Predictor, rows: pl.DataFrame, dtype: pl.DataType
) -> None:
    expected = predictor.predict(rows)
    changed = rows.with_columns(pl.col("user", "domain").cast(dtype))
    np.testing.assert_array_equal(predictor.predict(changed), expected)
    np.testing.assert_array_equal(predictor.predict(changed.to_pandas()), expected)


def test_frames_of_pandas(predictor: Predictor, rows: pl.DataFrame) -> None:
    expected = predictor.predict(rows.with_columns(pl.col("price").cast(pl.Float32)))
    table = rows.to_pandas()
    table["user"] = table["user"].astype("category")
    table["ad"] = table["ad"].astype("Int64")
    table["history"] = [None if len(one) == 0 else one for one in table["history"]]
    table.loc[table["history"].isna(), "history"] = float("nan")
    table.index = table.index[::-1]
    np.testing.assert_array_equal(predictor.predict(table), expected)
    whole = rows.with_columns(pl.col("price").fill_null(0).round())
    numbers = whole.to_pandas().astype({"price": np.int64})
    np.testing.assert_array_equal(predictor.predict(numbers), predictor.predict(whole))


@pytest.mark.parametrize("empty", [[[]], [None], [[], None]])
def test_empty_lists(predictor: Predictor, rows: pl.DataFrame, empty: list[object]) -> None:
    one = rows.with_columns(history=pl.lit([], dtype=pl.List(pl.Int64))).head(len(empty))
    expected = predictor.predict(one)
    changed = one.with_columns(pl.Series("history", empty))
    np.testing.assert_array_equal(predictor.predict(changed), expected)
    table = one.to_pandas()
    table["history"] = empty
    np.testing.assert_array_equal(predictor.predict(table), expected)


def test_frames_without_rows(predictor: Predictor, rows: pl.DataFrame) -> None:
    names = rows.columns
    for frame in (rows.head(0), rows.to_pandas().head(0), pd.DataFrame(columns=names)):
        assert predictor.predict(frame).shape == (0,)
    with pytest.raises(InputError, match="'ad' is missing"):
        predictor.predict(rows.head(0).drop("ad"))


def test_a_large_frame_is_predicted_in_parts(predictor: Predictor, rows: pl.DataFrame) -> None:
    times = ROWS_AT_ONCE // ROWS + 3
    found = predictor.predict(pl.concat([rows] * times))
    assert found == pytest.approx(np.tile(predictor.predict(rows), times), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": pl.lit(30)}, r"'user': ids must be in \[0, 30\), got 30"),
        ({"user": pl.lit(-1)}, "got -1"),
        ({"user": pl.lit(2.5)}, "got 2.5"),
        ({"user": pl.lit(float("inf"))}, "got inf"),
        ({"user": pl.lit(2**64 - 1, dtype=pl.UInt64)}, "got 18446744073709551615"),
        ({"user": pl.lit(None)}, "'user' holds null; every row needs one id"),
        ({"user": pl.lit(float("nan"))}, "'user' holds null"),
        ({"user": pl.lit("5")}, "'user' holds String"),
        ({"user": pl.lit(True)}, "'user' holds Boolean"),
        ({"price": pl.lit("5")}, "'price' holds String; expected numbers"),
        ({"history": pl.lit(5)}, "'history' holds .*; expected lists"),
        ({"history": pl.lit([20])}, r"'history': ids must be in \[0, 20\), got 20"),
        ({"history": pl.lit([1, None], dtype=pl.List(pl.Int64))}, "'history' holds null"),
        ({"history": pl.lit(["a"])}, "'history' holds String"),
    ],
)
def test_a_wrong_value_is_named(
    predictor: Predictor, rows: pl.DataFrame, changes: dict[str, pl.Expr], message: str
) -> None:
    changed = rows.with_columns(**changes)
    for frame in (changed, changed.to_pandas()):
        with pytest.raises(InputError, match=message) as error:
            predictor.predict(frame)
        assert "\n" not in str(error.value)


def test_a_wrong_frame_is_named(tmp_path: Path, predictor: Predictor, rows: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"'ad' is missing \(1 of 5 columns\); did you mean 'ads'"):
        predictor.predict(rows.rename({"ad": "ads"}))
    table = rows.to_pandas()
    with pytest.raises(InputError, match="'ad' stands twice"):
        predictor.predict(pd.concat([table, table[["ad"]]], axis=1))
    table["price"] = [1.5, "a", *[None] * (ROWS - 2)]
    with pytest.raises(InputError, match=r"'price' mixes values .* NoneType, float, str"):
        predictor.predict(table)
    with pytest.raises(InputError, match="expected the export folder"):
        Predictor.load(tmp_path / "nowhere")
