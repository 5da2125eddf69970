"""The page of the slow-network runs: what was written by hand stays."""

import pytest

from bench.towers.report import REPORT, written_by_hand


@pytest.mark.parametrize("text", ["One line.", "Two\n\nparagraphs."])
def test_writing_the_page_keeps_what_was_written_by_hand(text: str) -> None:
    kept = "\n".join(written_by_hand(f"# Title\n\n| a table |\n\n## About these runs\n\n{text}\n"))
    assert kept == f"\n## About these runs\n\n{text}"
    assert "\n".join(written_by_hand(f"# Title\n{kept}\n")) == kept
    assert written_by_hand("# Title\n") == []


def test_the_page_has_such_a_section() -> None:
    page = REPORT.read_text()
    assert page.endswith("\n".join(written_by_hand(page)) + "\n") and "About these runs" in page
