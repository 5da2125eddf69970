"""The generated stream: reproducible, with the promised base rate and signal."""

from pathlib import Path

import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from recsys.config import InputError
from recsys.data.ingest import IngestReport, ingest
from recsys.data.settings import DatasetSettings, DataSettings
from tests.support.files import digests

ORACLE_AUC_BAR = 0.80


def test_same_settings_same_bytes(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    for run in ("one", "two"):
        ingest(data_settings, small_dataset, tmp_path / run / "windows", tmp_path / run / "oracle")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert small_dataset.synthetic is not None
    other = small_dataset.model_copy(
        update={"synthetic": small_dataset.synthetic.model_copy(update={"seed": 1})}
    )
    ingest(data_settings, other, tmp_path / "other" / "windows", tmp_path / "other" / "oracle")
    assert digests(tmp_path / "other") != digests(tmp_path / "one")


def test_base_rate_and_signal(small_stream: tuple[Path, Path, IngestReport]) -> None:
    windows_dir, oracle_dir, report = small_stream
    assert (report.rows, report.windows, report.quarantined) == (20_000, 4, 0)
    assert 0.03 <= report.base_rate <= 0.06
    rows = pl.read_parquet(windows_dir / "*" / "part-*.parquet")
    assert rows["example_id"].to_list() == list(range(20_000))
    truth = rows.join(pl.read_parquet(oracle_dir / "*.parquet"), on="example_id")
    assert roc_auc_score(truth["label"], truth["probability"]) > ORACLE_AUC_BAR
    assert truth["probability"].mean() == pytest.approx(report.base_rate, abs=0.005)


def test_delay_missing_values_and_turnover(small_stream: tuple[Path, Path, IngestReport]) -> None:
    rows = pl.read_parquet(small_stream[0] / "*" / "part-*.parquet")
    delay_h = (rows["label_time"] - rows["event_time"]) / 3_600_000
    assert delay_h.min() >= 0 and delay_h.max() <= 24  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
    assert 0.05 < rows["dense_7"].null_count() / rows.height < 0.15
    first, last = (
        set(rows[part]["ad_id"].to_list()) for part in (slice(0, 5_000), slice(15_000, 20_000))
    )
    assert last - first and first - last


def test_shares_must_add_up(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    assert small_dataset.synthetic is not None
    wrong = small_dataset.synthetic.model_copy(
        update={"domains": small_dataset.synthetic.domains[:2]}
    )
    with pytest.raises(InputError, match="add up to 1"):
        ingest(
            data_settings,
            small_dataset.model_copy(update={"synthetic": wrong}),
            tmp_path / "w",
            tmp_path / "o",
        )
