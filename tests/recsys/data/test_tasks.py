"""Several tasks in the data: a label column each, null where there is none, under the names that a
model wants."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.config import InputError
from recsys.data.conversions import ConversionSettings
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.schema import Schema
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.distill.score_log import ScoreLog
from tests.support.files import digests
from tests.support.raw_logs import LOG, SECTION, rows_of, run

CONVERSIONS = {"rate": 0.3, "strength": 0.8, "click_strength": 0.5, "labelled": "impressions"}


def converting(dataset: DatasetSettings, labelled: str) -> DatasetSettings:
    assert dataset.synthetic is not None
    conversions = ConversionSettings.model_validate(CONVERSIONS | {"labelled": labelled})
    return dataset.model_copy(
        update={"synthetic": dataset.synthetic.model_copy(update={"conversions": conversions})}
    )


def generated(
    data: DataSettings, dataset: DatasetSettings, folder: Path
) -> tuple[pl.DataFrame, Schema]:
    """The rows with their truth, and the schema."""
    ingest(data, dataset, folder / "windows", folder / "oracle")
    truth = pl.read_parquet(folder / "oracle" / "*.parquet")
    return rows_of(folder).join(truth, on="example_id", maintain_order="left"), Schema.load(
        folder / "windows"
    )


@pytest.mark.slow
def test_conversions_change_nothing_else_of_the_stream(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    plain, schema = generated(data_settings, small_dataset, tmp_path / "plain")
    assert schema.tasks == ["click"]
    for labelled in ("impressions", "clicks"):
        rows, schema = generated(
            data_settings, converting(small_dataset, labelled), tmp_path / labelled
        )
        assert schema.tasks == ["click", "conversion"]
        assert rows.select(plain.columns).equals(plain)
        ingest(
            data_settings,
            converting(small_dataset, labelled),
            tmp_path / f"{labelled}-again",
            tmp_path / "oracle",
        )
        assert digests(tmp_path / labelled / "windows") == digests(tmp_path / f"{labelled}-again")


def test_on_impressions_a_conversion_is_a_click_that_converts(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    rows, schema = generated(data_settings, converting(small_dataset, "impressions"), tmp_path)
    label, clicked = rows["label_conversion"], rows["label"]
    assert label.null_count() == 0 and (label <= clicked).all()
    assert label.mean() == pytest.approx(rows["probability_conversion"].mean(), rel=0.15)
    given_click = rows["probability_conversion"] / rows["probability"]
    assert given_click.mean() == pytest.approx(CONVERSIONS["rate"], rel=0.05)
    first = rows.filter(pl.col("event_time") < schema.windows[0].end_ms)
    assert schema.base_rates == {
        "click": pytest.approx(first["label"].mean()),
        "conversion": pytest.approx(first["label_conversion"].mean()),
    }


def test_on_clicks_an_example_that_was_not_clicked_has_no_label(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    rows, schema = generated(data_settings, converting(small_dataset, "clicks"), tmp_path)
    assert rows["label_conversion"].is_null().equals(rows["label"] == 0)
    clicked = rows.filter(pl.col("label") == 1)
    assert clicked["label_conversion"].mean() == pytest.approx(
        clicked["probability_conversion"].mean(), rel=0.1
    )
    assert schema.base_rates["conversion"] == pytest.approx(
        clicked["label_conversion"].mean(), rel=0.3
    )


@pytest.mark.parametrize(
    "tasks", [["click"], ["conversion"], ["click", "conversion"], ["conversion", "click"]]
)
def test_reader_gives_labels_and_scores_under_the_names_of_the_models_tasks(
    tasks: list[str], data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    rows, _ = generated(data_settings, converting(small_dataset, "clicks"), tmp_path)
    reader = WindowReader(tmp_path / "windows", tasks)
    scores_dir = tmp_path / "scores"
    scores_dir.mkdir()
    logits = {"click": 1.0, "conversion": 2.0}
    window = reader.windows[0]
    scored = rows.select(
        "example_id",
        (pl.col("example_id") + logits["click"]).cast(pl.Float32).alias("logit"),
        (pl.col("example_id") + logits["conversion"]).cast(pl.Float32).alias("logit_conversion"),
        snapshot=pl.lit("old"),
        high_water_mark=pl.lit(window.start_ms),
        staleness_ms=pl.col("event_time") - window.start_ms,
    )
    scored.write_parquet(scores_dir / f"{window.name}.parquet")
    columns = {"click": "label", "conversion": "label_conversion"}
    for batch in [
        *reader.label_batches(window, 512, 0, 1, scores=ScoreLog(scores_dir, reader.logits)),
        *list(reader.event_batches(window, 512, 0, 1))[:2],
    ]:
        own = rows[batch.example_id.numpy()]
        labels = {tasks[0]: batch.label, **batch.further_labels}
        scores = {tasks[0]: batch.score, **batch.further_scores}
        assert list(labels) == list(scores) == tasks
        for task in tasks:
            np.testing.assert_array_equal(labels[task].numpy(), own[columns[task]].to_numpy())
            known = torch.isfinite(scores[task])
            assert torch.equal(
                scores[task][known], (batch.example_id + logits[task]).float()[known]
            )
        moved = batch.to(torch.device("meta"), non_blocking=False)
        assert all(
            part.is_meta
            for part in (
                moved.label,
                *moved.further_labels.values(),
                *moved.further_scores.values(),
            )
        )
        if len(tasks) > 1:
            assert torch.equal(
                batch.of_task(tasks[1]).label.nan_to_num(-1), labels[tasks[1]].nan_to_num(-1)
            )


def test_predictions_are_stored_under_the_names_of_the_data(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    generated(data_settings, converting(small_dataset, "clicks"), tmp_path)
    columns = {"label": [0.0], "logit": [1.0], "label_click": [1.0], "logit_click": [2.0]}
    stored = WindowReader(tmp_path / "windows", ["conversion", "click"]).as_stored(
        pl.DataFrame(columns)
    )
    assert stored.columns == ["label_conversion", "logit_conversion", "label", "logit"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["cart"], "task 'cart': the data have click"),
        ([], "at least one"),
        (["click", "click"], "each once"),
    ],
)
def test_tasks_that_the_data_lack_are_named(tasks: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schema("toy", [], [], ["all"], [], 0.1, {}).for_tasks(tasks)


def test_a_schema_without_tasks_is_one_of_clicks(tmp_path: Path) -> None:
    """As ingest wrote it before there were tasks."""
    (tmp_path / "schema.json").write_text(
        '{"dataset": "old", "dense": [], "categorical": [], "domains": ["all"], "windows": [], '
        '"initial_base_rate": 0.1, "planted_groups": {}}'
    )
    assert Schema.load(tmp_path).base_rates == {"click": 0.1}


def test_table_reads_further_labels_and_keeps_rows_without_one(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    bought = ["1", "0", "", None] * 10
    text = LOG.cast(pl.String).with_columns(pl.Series("bought", bought))
    text.write_csv(tmp_path / "log.csv")
    section: dict[str, Any] = SECTION | {"labels": {"conversion": "bought"}}
    report = run(data_settings, tmp_path, "table", section)
    assert report.quarantined == 0
    assert rows_of(tmp_path)["label_conversion"].to_list() == [1.0, 0.0, None, None] * 10
    assert Schema.load(tmp_path / "windows").base_rates["conversion"] == 0.5


def test_table_quarantines_wrong_further_labels_and_names_a_missing_column(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG.with_columns(bought=pl.Series(["2", "maybe", "1", "0"] * 10)).write_csv(
        tmp_path / "log.csv"
    )
    section: dict[str, Any] = SECTION | {"labels": {"conversion": "bought"}}
    with pytest.raises(
        InputError, match=r"20 of 40 rows are bad.*label of conversion outside \{0, 1\}"
    ):
        run(
            data_settings, tmp_path / "a", "table", section | {"files": [str(tmp_path / "log.csv")]}
        )
    section = SECTION | {"labels": {"conversion": "bough"}}
    with pytest.raises(InputError, match="no column 'bough'; did you mean 'bought'"):
        run(
            data_settings, tmp_path / "b", "table", section | {"files": [str(tmp_path / "log.csv")]}
        )


@pytest.mark.parametrize("name", ["click", "serving", "Two", "a b"])
def test_a_tasks_name_must_be_free_and_plain(name: str) -> None:
    with pytest.raises(ValueError, match=r"not free|pattern"):
        DatasetSettings.model_validate(
            {"format": "table", "table": SECTION | {"labels": {name: "bought"}}}
        )
