"""The hostile logs of ingest, described: a YAML that parses, or one line and nothing written."""

from pathlib import Path

import pytest

from flows.towerflow import main
from recsys.config import load_settings
from recsys.data.settings import DatasetSettings
from tests.support.hostile_logs import ALL, Case, write

DESCRIBED = [case for case in ALL if case.section.get("files")]


@pytest.mark.parametrize("case", DESCRIBED, ids=str)
def test_a_hostile_log_is_described_or_refused_in_one_line(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "logs", case.files)
    files = [str(tmp_path / "logs" / name) for name in case.section["files"]]
    output = tmp_path / "described.yaml"
    status = main(["describe", *files, "--output", str(output)])
    if status == 0:
        load_settings(output, DatasetSettings)
        return
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not output.exists()
