"""A line says how far a step is, and what is left only where that is known."""

import pytest

import recsys.progress
from recsys.progress import TWICE, RowProgress


@pytest.fixture(autouse=True)
def _every_call_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recsys.progress, "LINE_INTERVAL_S", 0.0)


def test_nothing_is_left_of_an_unknown_number(capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress("ingest", 0) as progress:
        progress.advance(300_000)
    first, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("ingest: 300,000 rows, ")
    assert "left" not in first and " of " not in first


def test_what_was_expected_is_forgotten_where_more_rows_come(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with RowProgress("ingest", 0) as progress:
        progress.expect(10)
        progress.advance(10)
        progress.advance(2)
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("ingest: 10 of 10 rows, ") and first.endswith(" 0 s left")
    assert second.startswith("ingest: 12 rows, ") and "left" not in second


def test_the_last_line_says_why_there_are_more_rows_than_the_log_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with RowProgress("teacher", 0, counted=TWICE) as progress:
        progress.advance(480)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("teacher: 480 rows (each predicted, then trained on) in ")


def test_a_note_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    RowProgress("ingest", 0).note("2 files")
    RowProgress("ingest", 0, enabled=False).note("2 files")
    assert capsys.readouterr().err == "ingest: 2 files\n"
