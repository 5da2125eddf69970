"""Two sides are compared on the same rows, joined by example, or refused by name."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.evaluation.comparison import holm
from recsys.evaluation.pairs import Pair, compare_sources, find_models
from tests.support.predictions import ROWS, SETTINGS, run


def compared(first: Path, second: Path) -> list[Pair]:
    return compare_sources(first, second, SETTINGS, first_window=1)


def test_arms_compare_as_in_the_report(run_dir: Path) -> None:
    students = run_dir / "students/feed"
    [pair] = compared(students / "plain", students / "distilled")
    report = run(run_dir, "report")
    assert (pair.rows, pair.seeds) == (ROWS, 2)
    for own, row in zip(pair.comparisons, report.metrics, strict=True):
        assert own.difference == row.comparison.difference
        assert own.low == pytest.approx(row.comparison.low, abs=1e-12)


def test_rows_are_joined_by_example(run_dir: Path) -> None:
    plain = run_dir / "students/feed/plain/seed-1/predictions"
    one, other = run_dir / "one", run_dir / "other"
    for path in sorted(plain.iterdir()):
        frame = pl.read_parquet(path)
        for folder, rows in ((one, frame), (other, frame.sample(fraction=1, shuffle=True, seed=2))):
            folder.mkdir(exist_ok=True)
            rows.write_parquet(folder / path.name)
    [pair] = compared(one, other)
    assert [own.difference for own in pair.comparisons] == [0.0] * len(pair.comparisons)
    assert [own.p_holm for own in pair.comparisons] == [1.0] * len(pair.comparisons)


def test_runs_are_compared_model_by_model_and_corrected_together(run_dir: Path) -> None:
    (run_dir / "models").mkdir()
    for part in ("students", "teacher"):
        (run_dir / part).rename(run_dir / "models" / part)
    another = run_dir / "another/models"
    shutil.copytree(run_dir / "models", another)
    shutil.rmtree(another / "students/feed/plain")
    shutil.copytree(another / "students/feed/distilled", another / "students/feed/plain")
    shutil.rmtree(another / "students/feed/distilled")
    assert list(find_models(run_dir)) == [
        "students/feed/distilled",
        "students/feed/plain",
        "teacher",
    ]
    pairs = compared(run_dir, run_dir / "another")
    assert [pair.model for pair in pairs] == ["students/feed/plain", "teacher"]
    better, same = (pair.comparisons for pair in pairs)
    assert better[0].high < 0
    assert all(own.difference == 0 for own in same)
    every = [own for pair in pairs for own in pair.comparisons]
    assert [own.p_holm for own in every] == holm([own.p for own in every])


def test_one_seed_stands_beside_each_of_several(run_dir: Path) -> None:
    students = run_dir / "students/feed"
    [pair] = compared(students / "plain/seed-1", students / "distilled")
    each = [
        compared(students / "plain/seed-1", students / f"distilled/seed-{seed}")[0].comparisons[0]
        for seed in (1, 2)
    ]
    mean = np.mean([own.difference for own in each])
    assert pair.comparisons[0].difference == pytest.approx(mean)


def test_rows_that_differ_are_named(run_dir: Path) -> None:
    students = run_dir / "students/feed"
    with pytest.raises(InputError, match=r"600 only in .*teacher.*, such as .*of window w1"):
        compared(students / "plain/seed-1", run_dir / "teacher")
    path = students / "distilled/seed-2/predictions/w2.parquet"
    frame = pl.read_parquet(path)
    flipped = frame.with_columns(label=1 - pl.col("label"))
    changed = pl.concat([flipped.head(1), frame.tail(-1)])
    changed.write_parquet(path)
    example = frame["example_id"][0]
    with pytest.raises(InputError, match=rf"1 rows differ in label, .*{example} of window w2"):
        compared(students / "plain", students / "distilled")
    frame.drop("group").write_parquet(path)
    with pytest.raises(InputError, match=r"w2\.parquet: no column 'group'"):
        compared(students / "plain", students / "distilled")


def test_what_is_no_pair_is_refused(run_dir: Path) -> None:
    students = run_dir / "students"
    with pytest.raises(InputError, match="no model in common; name one of each side"):
        compared(students, students / "feed")
    with pytest.raises(InputError, match=r"windows: no predictions; expected"):
        compared(run_dir / "windows", students)
    with pytest.raises(InputError, match="none left from window 3 on; see --first-window"):
        compare_sources(students, students, SETTINGS, first_window=3)
