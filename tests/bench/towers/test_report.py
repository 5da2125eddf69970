"""The page of the slow-network runs: what was written by hand stays, a fit has runs to fit on."""

import pytest

from bench.towers.fit import Fitted
from bench.towers.report import REPORT, report_lines, written_by_hand
from tests.support.tower_runs import CORES, COSTS, runs_of


@pytest.mark.parametrize("text", ["One line.", "Two\n\nparagraphs."])
def test_writing_the_page_keeps_what_was_written_by_hand(text: str) -> None:
    kept = "\n".join(written_by_hand(f"# Title\n\n| a table |\n\n## About these runs\n\n{text}\n"))
    assert kept == f"\n## About these runs\n\n{text}"
    assert "\n".join(written_by_hand(f"# Title\n{kept}\n")) == kept
    assert written_by_hand("# Title\n") == []


def test_the_page_has_such_a_section() -> None:
    page = REPORT.read_text()
    assert page.endswith("\n".join(written_by_hand(page)) + "\n") and "About these runs" in page


@pytest.mark.parametrize("cluster", [("dcn", 2), ("dlrm", 4)])
def test_runs_of_one_cluster_make_a_page_that_names_the_fits_that_it_lacks(
    cluster: tuple[str, int],
) -> None:
    """As after ``--only dcn-2`` in a fresh clone."""
    runs = [run for run in runs_of(Fitted(COSTS, CORES)) if run.cluster == cluster]
    page = "\n".join(report_lines(runs))
    if cluster == ("dcn", 2):
        assert "all, each cluster fitted without it | 25 | not fitted: no other runs |" in page
    else:
        assert "not fitted: no run of dcn 2 hosts, dlrm 8 hosts." in page
