"""The real logs, where they are there: counts from their README, and no leaks."""

from pathlib import Path

import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, load_dataset

PARAMS = Path(__file__).resolve().parents[3] / "params"
POOLED_AUC_BAR = 0.74


@pytest.mark.slow
def test_ebnerd_has_the_known_pairs_and_signal(
    data_settings: DataSettings, real_logs: Path, tmp_path: Path
) -> None:
    settings = data_settings.model_copy(update={"root": str(real_logs), "dataset": "ebnerd_demo"})
    report = ingest(
        settings, load_dataset(settings, PARAMS / "datasets"), tmp_path / "w", tmp_path / "o"
    )
    assert report.rows == 583_054
    assert round(report.base_rate * report.rows) == 50_273
    schema = Schema.load(tmp_path / "w")
    rows = pl.read_parquet(tmp_path / "w" / "*" / "part-*.parquet")
    half = rows.height // 2
    inputs, labels = rows.select(schema.dense).to_numpy(), rows["label"].to_numpy()
    model = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(
        inputs[:half], labels[:half]
    )
    assert roc_auc_score(labels[half:], model.predict_proba(inputs[half:])[:, 1]) > POOLED_AUC_BAR


def test_globo_day_gets_four_negatives_per_click(
    data_settings: DataSettings, real_logs: Path, tmp_path: Path
) -> None:
    settings = data_settings.model_copy(update={"root": str(real_logs), "dataset": "globo_clicks"})
    dataset = load_dataset(settings, PARAMS / "datasets")
    assert dataset.table is not None
    day = dataset.table.model_copy(update={"files": ["globo_clicks/clicks_2017-10-01.parquet"]})
    report = ingest(
        settings, dataset.model_copy(update={"table": day}), tmp_path / "w", tmp_path / "o"
    )
    clicks = pl.read_parquet(real_logs / day.files[0]).height
    assert report.base_rate == pytest.approx(0.2, abs=1e-3)
    assert 0.9 * clicks < report.rows * report.base_rate <= clicks
