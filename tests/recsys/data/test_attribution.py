"""Which conversions count, and from when on rows without one are negatives."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.data.settings import DataSettings, TableSettings
from tests.support.raw_logs import rows_of, run

START_S, HOUR_S = 1_704_067_200, 3_600
# Converted at once, within the window, at its end, after it; and not at all
DELAYS_S: list[int | None] = [0, HOUR_S, 2 * HOUR_S, 2 * HOUR_S + 1, None]
LOG = pl.DataFrame(
    {
        "ts": [START_S + row for row in range(5)],
        "converted": [1, 1, 1, 1, 0],
        "at": [None if delay is None else START_S + i + delay for i, delay in enumerate(DELAYS_S)],
        "ad": list("abcde"),
    }
)
SECTION: dict[str, Any] = {
    "files": ["log.csv"],
    "file_format": "csv",
    "time": {"column": "ts", "unit": "s"},
    "label_time": {"column": "at", "unit": "s"},
    "label": "converted",
    "categorical": [{"column": "ad", "table_rows": 50}],
}


def test_rows_wait_for_the_window_and_later_conversions_are_none(
    data_settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    report = run(data_settings, tmp_path, "table", SECTION | {"attribution_window_s": 2 * HOUR_S})
    assert "attribution_window_s" not in capsys.readouterr().err
    rows = rows_of(tmp_path)
    assert rows["label"].to_list() == [1, 1, 1, 0, 0]
    assert (rows["label_time"] - rows["event_time"]).unique().to_list() == [2 * HOUR_S * 1000]
    assert (report.rows, report.base_rate) == (5, 0.6)


def test_without_a_window_each_conversion_counts_from_its_own_time(
    data_settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    run(data_settings, tmp_path, "table", SECTION)
    assert "label_time without attribution_window_s" in capsys.readouterr().err
    rows = rows_of(tmp_path)
    assert rows["label"].to_list() == [1, 1, 1, 1, 0]
    delays = [0 if delay is None else delay * 1000 for delay in DELAYS_S]
    assert (rows["label_time"] - rows["event_time"]).to_list() == delays


@pytest.mark.parametrize("missing", ["label_time", "label"])
def test_a_window_needs_the_times_of_positives(missing: str) -> None:
    explode = {"shown": "s", "clicked": "c", "item": "i"}
    change = {missing: None} | ({"explode": explode} if missing == "label" else {})
    with pytest.raises(ValueError, match="attribution_window_s needs label and label_time"):
        TableSettings.model_validate(SECTION | change | {"attribution_window_s": 60})
