"""Hostile logs: the rows that were meant, or one line, and nothing half-written."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from recsys.config import InputError, parse_settings
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings
from tests.support.hostile_logs import ALL, Case, write


def run(case: Case, root: Path) -> pl.DataFrame:
    """The rows that ingest writes; an InputError passes."""
    write(root / "logs", case.files)
    limit = 0.9 if case.quarantined else 0.01
    values = {"root": str(root / "logs"), "quarantine_limit": limit, **case.data}
    data = parse_settings(yaml.safe_dump(values), "data.yaml", DataSettings)
    text = yaml.safe_dump({"format": case.format, case.format: case.section}, sort_keys=False)
    dataset = parse_settings(text, "mine.yaml", DatasetSettings)
    ingest(data, dataset, root / "windows", root / "oracle")
    return pl.read_parquet(root / "windows" / "*" / "part-*.parquet")


@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_hostile_log(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if case.refusal is not None:
        with pytest.raises(InputError) as caught:
            run(case, tmp_path)
        message = str(caught.value)
        assert case.refusal in message
        assert "\n" not in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]
        return
    rows = run(case, tmp_path)
    assert {name: rows[name].to_list() for name in case.columns} == dict(case.columns)
    kept = tmp_path / "windows" / "quarantine.parquet"
    reasons = pl.read_parquet(kept)["reason"].to_list() if kept.is_file() else []
    assert {reason: reasons.count(reason) for reason in reasons} == case.quarantined
    assert list((tmp_path / "oracle").iterdir()) == []
    if case.said is not None:
        assert case.said in capsys.readouterr().err
