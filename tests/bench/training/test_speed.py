"""Measurements that add up over calls of the training benchmark."""

from pathlib import Path

from bench.training.cases import Model
from bench.training.report import Section
from bench.training.speed import read_sections, write_sections


def test_what_a_call_measured_is_there_for_the_next_one(tmp_path: Path) -> None:
    model = Model("dlrm", 64, 4096, 1000)
    run = {"samples": 8192.0, "seconds": 2.0, "waited": 0.0}
    section = Section(
        model, {"flops": 1.0}, {"plain-adagrad": [run, run]}, {"fuxictr-adam": "skipped"}
    )
    assert read_sections(tmp_path / "none.json") == {}
    write_sections(tmp_path / "results.json", {model: section})
    assert read_sections(tmp_path / "results.json") == {model: section}
