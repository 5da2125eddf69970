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
from recsys.data.encoder import encoder_of_ids
from recsys.data.loader import META_COLUMNS, batch_of
from recsys.data.schema import CategoricalFeature, Schema, Window
from recsys.data.standardise import Standard
from recsys.files import write_sums
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
ENCODER = encoder_of_ids(["price"], FEATURES, ["all"], given=True)
SLICED = Partition(
    "manual", [["user:1of2", "ad"], ["user:2of2", "history"]], ["user", "ad", "history"]
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


@pytest.mark.parametrize("architecture", ["dlrm", "dcn", "wukong"])
@pytest.mark.parametrize("partition", [None, PARTITION, SLICED])
def test_predictor_equals_the_ranker(
    tmp_path: Path,
    frame: pl.DataFrame,
    architecture: Literal["dlrm", "dcn", "wukong"],
    partition: Partition | None,
) -> None:
    """Of two tasks, flat, with towers, and with towers of column slices."""
    settings = ModelSettings(
        architecture=architecture,
        towers=partition is not None,
        embedding_dimension=8,
        dense_layers=[8],
        over_layers=[8],
    )
    schema = replace(SCHEMA, tasks=["click", "sale"], further_base_rates=[0.02])
    ranker = build_ranker(schema, settings, partition, seed=7)
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.normal(0, 0.3, value.shape, generator=generator)
        for name, value in ranker.state_dict().items()
    }
    ranker.load_state_dict(state)
    export_ranker(state, schema, settings, ENCODER, tmp_path, partition)
    meta = {name: pl.lit(0) for name in (*META_COLUMNS, "label", "label_sale")}
    batch = batch_of(frame.with_columns(**meta), schema, np.ones(ROWS, np.float32), ROWS)
    with torch.no_grad():
        logits = ranker(batch.dense, batch.sparse)
    expected = {"click": logits["serving"], "sale": logits["sale"]}
    predictor = Predictor.load(tmp_path)
    found = predictor.predict_tasks(frame)
    for task, one in expected.items():
        assert one.std() > 0.1
        assert found[task] == pytest.approx(torch.sigmoid(one.double()).numpy(), abs=1e-6)


def test_export_is_reproducible(tmp_path: Path) -> None:
    settings = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
    for name in ("a", "b"):
        export_ranker(
            build_ranker(SCHEMA, settings, None, 7).state_dict(),
            SCHEMA,
            settings,
            ENCODER,
            tmp_path / name,
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
    encoder = encoder_of_ids(["price"], FEATURES, DOMAINS, given=True)
    export_ranker(state, schema, settings, encoder, folder, domain=domain)
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
    expected = predictor.predict_encoded(missing)
    assert (
        expected != predictor.predict_encoded(rows)
    ).sum() == ROWS - 1  # the first one is missing
    np.testing.assert_array_equal(predictor.predict_encoded(changed), expected)
    np.testing.assert_array_equal(predictor.predict_encoded(changed.to_pandas()), expected)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (-1, r"holds -1, which is not a domain; domains: feed, video \(in the log: 0, 1\)"),
        (99, "'domain' holds 99, which is not a domain"),
        (None, "'domain' holds None"),
        (float("nan"), "'domain' holds"),
        (0.5, "holds 0.5, which is not a domain"),
        ("search", "holds 'search', which is not a domain"),
    ],
)
def test_a_domain_that_does_not_exist_is_named(
    predictor: Predictor, video: Predictor, rows: pl.DataFrame, domain: object, message: str
) -> None:
    changed = rows.with_columns(domain=pl.lit(domain))
    for one in (predictor, video):
        with pytest.raises(InputError, match=message):
            one.predict_encoded(changed)


def test_a_student_serves_its_own_domain_alone(
    predictor: Predictor, video: Predictor, rows: pl.DataFrame
) -> None:
    expected = predictor.predict_encoded(rows)
    np.testing.assert_array_equal(video.predict_encoded(rows), expected)
    np.testing.assert_array_equal(video.predict_encoded(rows.drop("domain")), expected)
    named = rows.with_columns(domain=pl.lit("video"))
    np.testing.assert_array_equal(video.predict_encoded(named), expected)
    assert (predictor.predict_encoded(rows.with_columns(domain=pl.lit(0))) != expected).all()
    mixed = rows.with_columns(domain=pl.Series([0, *[1] * (ROWS - 1)]))
    with pytest.raises(InputError, match=r"1 of 50 rows .* such as feed; this model serves video"):
        video.predict_encoded(mixed)
    with pytest.raises(InputError, match="'domain' is missing"):
        predictor.predict_encoded(rows.drop("domain"))


def test_exports_of_another_version_or_encoder_are_refused(tmp_path: Path) -> None:
    exported(tmp_path, "video")
    encoder_of_ids(["price"], FEATURES, ["feed", "films"]).save(tmp_path)
    with pytest.raises(InputError, match=r"encoder.json: is damaged .* towerflow students"):
        Predictor.load(tmp_path)
    write_sums(tmp_path)
    with pytest.raises(InputError, match=r"encoder.json: is not the encoder that the model"):
        Predictor.load(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | {"version": 1}))
    with pytest.raises(InputError, match=r"version 1, .* reads 3; train the students again"):
        Predictor.load(tmp_path)


def test_unread_columns_may_hold_anything(predictor: Predictor, rows: pl.DataFrame) -> None:
    expected = predictor.predict_encoded(rows)
    more = rows.with_columns(
        pl.lit("a7f3").alias("example_id"),
        pl.lit("yesterday").alias("event_time"),
        pl.lit(None).alias("group"),
        pl.lit("no").alias("label"),
        pl.lit(0.5).alias("score"),
    )
    np.testing.assert_array_equal(predictor.predict_encoded(more), expected)
    table = more.to_pandas()
    table["mixed"] = [1, "a", *[None] * (ROWS - 2)]
    table.insert(0, "group", "twice", allow_duplicates=True)
    table[7] = 0
    np.testing.assert_array_equal(predictor.predict_encoded(table), expected)


@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt8, pl.UInt64, pl.Float64, pl.Decimal(9, 2)])
def test_ids_of_any_type_of_number(
    predictor: Predictor, rows: pl.DataFrame, dtype: pl.DataType
) -> None:
    expected = predictor.predict_encoded(rows)
    changed = rows.with_columns(pl.col("user", "domain").cast(dtype))
    np.testing.assert_array_equal(predictor.predict_encoded(changed), expected)
    np.testing.assert_array_equal(predictor.predict_encoded(changed.to_pandas()), expected)


def test_frames_of_pandas(predictor: Predictor, rows: pl.DataFrame) -> None:
    expected = predictor.predict_encoded(rows.with_columns(pl.col("price").cast(pl.Float32)))
    table = rows.to_pandas()
    table["user"] = table["user"].astype("category")
    table["ad"] = table["ad"].astype("Int64")
    table["history"] = [None if len(one) == 0 else one for one in table["history"]]
    table.loc[table["history"].isna(), "history"] = float("nan")
    table.index = table.index[::-1]
    np.testing.assert_array_equal(predictor.predict_encoded(table), expected)
    whole = rows.with_columns(pl.col("price").fill_null(0).round())
    numbers = whole.to_pandas().astype({"price": np.int64})
    np.testing.assert_array_equal(
        predictor.predict_encoded(numbers), predictor.predict_encoded(whole)
    )


@pytest.mark.parametrize("empty", [[[]], [None], [[], None]])
def test_empty_lists(predictor: Predictor, rows: pl.DataFrame, empty: list[object]) -> None:
    one = rows.with_columns(history=pl.lit([], dtype=pl.List(pl.Int64))).head(len(empty))
    expected = predictor.predict_encoded(one)
    changed = one.with_columns(pl.Series("history", empty))
    np.testing.assert_array_equal(predictor.predict_encoded(changed), expected)
    table = one.to_pandas()
    table["history"] = empty
    np.testing.assert_array_equal(predictor.predict_encoded(table), expected)


def test_frames_without_rows(predictor: Predictor, rows: pl.DataFrame) -> None:
    names = rows.columns
    for frame in (rows.head(0), rows.to_pandas().head(0), pd.DataFrame(columns=names)):
        assert predictor.predict_encoded(frame).shape == (0,)
    with pytest.raises(InputError, match="'ad' is missing"):
        predictor.predict_encoded(rows.head(0).drop("ad"))


def test_a_large_frame_is_predicted_in_parts(predictor: Predictor, rows: pl.DataFrame) -> None:
    times = ROWS_AT_ONCE // ROWS + 3
    found = predictor.predict_encoded(pl.concat([rows] * times))
    assert found == pytest.approx(np.tile(predictor.predict_encoded(rows), times), abs=1e-6)


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
        ({"user": pl.lit("5")}, "'user' holds str"),
        ({"user": pl.lit(True)}, "'user' holds bool"),
        ({"price": pl.lit("5")}, "'price' holds '5'; expected numbers"),
        ({"history": pl.lit(5)}, "'history' holds .*; expected lists"),
        ({"history": pl.lit([20])}, r"'history': ids must be in \[0, 20\), got 20"),
        ({"history": pl.lit([1, None], dtype=pl.List(pl.Int64))}, "'history' holds null"),
        ({"history": pl.lit(["a"])}, "'history' holds str; expected ids"),
    ],
)
def test_a_wrong_value_is_named(
    predictor: Predictor, rows: pl.DataFrame, changes: dict[str, pl.Expr], message: str
) -> None:
    changed = rows.with_columns(**changes)
    for frame in (changed, changed.to_pandas()):
        with pytest.raises(InputError, match=message) as error:
            predictor.predict_encoded(frame)
        assert "\n" not in str(error.value)


def test_a_wrong_frame_is_named(tmp_path: Path, predictor: Predictor, rows: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="'ad' is missing; did you mean 'ads'"):
        predictor.predict_encoded(rows.rename({"ad": "ads"}))
    table = rows.to_pandas()
    with pytest.raises(InputError, match="'ad' appears twice"):
        predictor.predict_encoded(pd.concat([table, table[["ad"]]], axis=1))
    table["price"] = [1.5, "a", *[None] * (ROWS - 2)]
    with pytest.raises(InputError, match=r"'price' holds 'a'; expected numbers"):
        predictor.predict_encoded(table)
    with pytest.raises(InputError, match="expected the export folder"):
        Predictor.load(tmp_path / "nowhere")
