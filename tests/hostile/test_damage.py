"""Damage to any kind of file that a stage reads: the stage says so in one line, and learns nothing
from it."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.projects import copy_project, run

SETTINGS = {
    "data.max_windows": "4",
    "baselines.run": "[logistic]",
    "augment.teacher": "own",
    "train.world_size": "1",
    "train.global_batch_size": "512",
    "teacher.model.dense_layers": "[16]",
    "teacher.model.over_layers": "[16]",
    "students.seeds": "[1]",
    "towers.partition.probe_windows": "2",
    "students.rows_auto_windows": "2",
    "teacher.rate_auto_windows": "2",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "20",
}
ROWS_LINE, FEWER_ROWS = "rows: 240000", "rows: 12000"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project whose pipeline has run once."""
    kept = os.environ.get("DAMAGE_PROJECT")
    if kept:
        return Path(kept)
    folder = copy_project(tmp_path_factory.mktemp("project"))
    description = folder / "params/datasets/synthetic.yaml"
    description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
    options = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    run(folder, sys.executable, "-m", "flows.pipeline", *options)
    return folder
