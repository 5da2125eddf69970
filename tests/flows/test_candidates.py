"""A log with candidates through the stages: scored by the project's own teacher, and taught."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.augment import augment
from flows.baselines import baselines
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.partition import partition
from flows.students import students
from flows.teacher import teacher
from tasks.overrides import apply_overrides
from tests.support.projects import copy_project
from tests.support.stages import run_stages

START_MS = 1_711_929_600_000
HOUR_MS = 3_600_000
DATASET = """
format: table
table:
  files: [log.parquet]
  candidates: {files: [candidates.parquet]}
  file_format: parquet
  time: {column: ms, unit: ms}
  label: clicked
  domain: {column: page, values: {a: a, b: b}}
  dense: [price]
  categorical: [{column: item, table_rows: 50}]
  counters: [{by: [item], hours: [2], bin_minutes: 10}]
"""
SMALL = {
    "data.dataset": "mine",
    "data.root": "logs",
    "data.window_hours": "1.0",
    "train.world_size": "1",
    "teacher.table_learning_rate": "null",
    "students.students": "[{name: a, domain: a}]",
    "students.seeds": "[1]",
    "students.table_learning_rate": "null",
    "students.distillation": "{rows: own, gate_windows: null}",
    "students.arms": "{plain: {mode: none}, distilled: {}, without: {candidates: false}}",
    "towers.partition.probe_windows": "1",
    "augment.teacher": "own",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "50",
}

EXTERNAL = (
    "{root: mine, files: [scores.parquet], score: p, scale: probability, "
    "learnt_until: window_start}"
)


def rows(seed: int, count: int) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "ms": START_MS + np.sort(random.integers(0, 4 * HOUR_MS, count)),
            "item": random.integers(0, 40, count),
            "page": random.choice(["a", "b"], count),
            "price": random.random(count),
            "clicked": random.integers(0, 2, count),
        }
    )


@pytest.mark.slow
def test_candidates_reach_the_students_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    project = copy_project(tmp_path)
    (project / "params/datasets/mine.yaml").write_text(DATASET)
    (project / "logs").mkdir()
    rows(0, 1_200).write_parquet(project / "logs/log.parquet")
    rows(1, 800).drop("clicked").write_parquet(project / "logs/candidates.parquet")
    with chdir(project):
        apply_overrides(SMALL)
        run_stages(ingest, baselines, partition, teacher, augment)
        run_stages(students, evaluate)
        scored = pl.read_parquet("data/scores/candidates/*/segment-*.parquet")
        shown = pl.read_parquet("data/windows/*/part-*.parquet")
        assert 0 < scored.height < 800  # the first window has no snapshot
        assert not set(scored["example_id"]) & set(shown["example_id"])
        assert f"candidates: {scored.height:,} of 800 have a score" in capfd.readouterr().out
        arms = {
            arm: pl.read_parquet(f"models/students/a/{arm}/seed-1/predictions/*.parquet")
            for arm in ("plain", "distilled", "without")
        }
        own = shown.filter(domain=0)["example_id"].sort()
        assert all(one["example_id"].sort().equals(own) for one in arms.values())
        assert not arms["distilled"].equals(arms["without"])
        Path("mine").mkdir()
        shown.select("example_id", p=pl.lit(0.4)).write_parquet("mine/scores.parquet")
        apply_overrides({"augment.teacher": "external", "augment.external": EXTERNAL})
        run_stages(augment)
        assert not Path("data/scores/candidates").exists()
        said = capfd.readouterr().out
        assert "candidates: not scored; only the project's own teacher scores them" in said
