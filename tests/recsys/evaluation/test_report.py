"""The report on made-up predictions: joined by example, pooled, reproducible."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.schema import CategoricalFeature, Schema
from recsys.evaluation.comparison import holm, p_text
from recsys.evaluation.metrics import METRICS, auc, normalized_entropy
from recsys.evaluation.printed import print_report
from tests.support.predictions import ROWS, SETTINGS, run


def test_headline_pools_the_evaluation_windows(run_dir: Path) -> None:
    report = run(run_dir, "report")
    values = json.loads((run_dir / "report" / "report.json").read_text())
    parts = [
        pl.read_parquet(
            run_dir / "students/feed/plain" / f"seed-{seed}" / "predictions" / f"w{window}.parquet"
        ).with_columns(seed=seed)
        for seed in (1, 2)
        for window in (1, 2)
    ]
    whole = pl.concat(parts)
    by_seed = [whole.filter(pl.col("seed") == seed) for seed in (1, 2)]
    expected = np.mean([auc(one["logit"].to_numpy(), one["label"].to_numpy()) for one in by_seed])
    assert values["students"]["feed"]["auc"]["plain"] == pytest.approx(expected)
    assert report.rows_by_student == {"feed": ROWS}
    assert values["students"]["feed"]["ne"]["high"] < 0
    assert (
        values["students"]["feed"]["ne"]["oracle"] < values["students"]["feed"]["ne"]["distilled"]
    )
    assert values["seeds"] == [1, 2]


def test_every_model_stands_on_the_same_rows_with_its_difference_to_plain(run_dir: Path) -> None:
    run(run_dir, "report")
    values = json.loads((run_dir / "report" / "report.json").read_text())
    models = values["models"]["feed"]
    order = ["logistic (own rows)", "logistic (all rows)", "trees (own rows)", "plain", "distilled"]
    assert sorted(models) == sorted([*order, "teacher", "oracle"])
    frames = [
        pl.read_parquet(run_dir / "baselines/logistic/all/predictions" / f"w{window}.parquet")
        for window in (1, 2)
    ]
    own = pl.concat(frames).filter(pl.col("domain") == 0)
    ne = normalized_entropy(own["logit"].to_numpy(), own["label"].to_numpy())
    best = models["logistic (all rows)"]["ne"]
    assert best["value"] == pytest.approx(ne)
    assert best["difference"] == pytest.approx(ne - models["plain"]["ne"]["value"])
    assert best["low"] < best["difference"] < best["high"] < 0
    assert models["logistic (own rows)"]["ne"]["low"] > 0
    in_both = values["students"]["feed"]["ne"]
    for bound in ("difference", "low", "high"):
        assert models["distilled"]["ne"][bound] == pytest.approx(in_both[bound])
    table = (run_dir / "report" / "table.md").read_text()
    lines = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| feed | ")]
    assert lines[5:] == [*order, "teacher", "oracle"]
    windows = (run_dir / "report" / "windows.csv").read_text()
    assert windows.count("feed/trees (own rows),") == 3


def test_the_report_ends_in_words(run_dir: Path) -> None:
    run(run_dir, "report")
    last = (run_dir / "report" / "table.md").read_text().splitlines()[-1]
    sentence = (
        r"- feed: distilled beats plain by [\d.]+ % \[[\d.]+, [\d.]+\]; "
        r"the best baseline on own rows \(trees\) loses to plain by .*; "
        r"the best baseline on all rows \(logistic\) beats plain by .*\]\."
    )
    assert re.fullmatch(sentence, last), last


def test_without_baselines_the_report_has_the_others(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "baselines")
    report = run(run_dir, "report")
    assert [row.model for row in report.models] == ["plain", "distilled", "teacher", "oracle"]
    assert "baseline" not in (run_dir / "report" / "table.md").read_text()


def test_outputs_are_reproducible(run_dir: Path) -> None:
    run(run_dir, "first")
    run(run_dir, "second")
    written = sorted(
        path.relative_to(run_dir / "first") for path in (run_dir / "first").rglob("*.*")
    )
    names = [
        "calibration.csv",
        "figures/calibration_feed.png",
        "figures/differences.png",
        "figures/gain_feed.png",
        "figures/ne_feed.png",
        "metrics.json",
        "report.html",
        "report.json",
        "table.md",
        "windows.csv",
    ]
    assert [path.as_posix() for path in written] == names
    for path in written:
        assert (run_dir / "first" / path).read_bytes() == (run_dir / "second" / path).read_bytes()


def test_the_page_holds_every_model_and_figure_and_needs_nothing_else(run_dir: Path) -> None:
    report = run(run_dir, "report")
    page = (run_dir / "report" / "report.html").read_text()
    assert page.count("<td>") == 9 * len(report.models)
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 3
    assert "http" not in page


def test_the_numbers_in_short_are_those_of_the_report(run_dir: Path) -> None:
    report = run(run_dir, "report")
    short = json.loads((run_dir / "report" / "metrics.json").read_text())["feed"]
    ne = {row.model: row.metrics["ne"] for row in report.models}
    assert {name: one["ne"] for name, one in short.items()} == {
        name: pytest.approx(ne[name]) for name in ("plain", "distilled", "teacher")
    }
    change = 100 * (ne["distilled"] / ne["plain"] - 1)
    assert short["distilled"]["ne_change_percent"] == pytest.approx(change)
    transfer = (ne["plain"] - ne["distilled"]) / (ne["plain"] - ne["teacher"])
    assert short["distilled"]["transfer"] == pytest.approx(transfer)


def test_the_calibration_of_bins_adds_up_to_all_rows(run_dir: Path) -> None:
    report = run(run_dir, "report")
    own = [row for row in report.calibration if row["model"] == "feed/plain"]
    assert sum(row["rows"] for row in own) == report.rows_by_student["feed"]
    assert [row["predicted"] for row in own] == sorted(row["predicted"] for row in own)
    predicted = sum(row["rows"] * row["predicted"] for row in own)
    observed = sum(row["rows"] * row["observed"] for row in own)
    plain = next(row for row in report.models if row.model == "plain")
    if len(report.seeds) == 1:
        assert predicted / observed == pytest.approx(plain.metrics["calibration"])


def test_real_logs_have_no_oracle(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run_dir / "oracle").iterdir():
        path.unlink()
    report = run(run_dir, "report")
    assert all(row.oracle is None for row in report.metrics)
    print_report(run_dir / "report")
    printed = capsys.readouterr().out
    assert all(
        label in printed for label in ("NE", "AUC", "gAUC", "LogLoss", "calibration", "feed")
    )


def test_missing_predictions_are_named(run_dir: Path) -> None:
    path = run_dir / "students/feed/distilled/seed-2/predictions/w2.parquet"
    path.unlink()
    with pytest.raises(InputError, match=r"seed-2/predictions/w2\.parquet: no such predictions"):
        run(run_dir, "report")


def test_windows_must_be_left_to_evaluate(run_dir: Path) -> None:
    settings = SETTINGS.model_copy(update={"first_evaluation_window": 3})
    with pytest.raises(InputError, match="below the number of windows 3, got 3"):
        run(run_dir, "report", settings)


def test_blocks_are_what_the_intervals_draw(run_dir: Path) -> None:
    found = {
        blocks: run(run_dir, blocks, SETTINGS.model_copy(update={"blocks": blocks})).models
        for blocks in ("group", "hour", "window")
    }
    intervals = {
        blocks: [(row.low, row.high) for row in models] for blocks, models in found.items()
    }
    # All three windows lie in one hour, which says nothing about other hours
    assert all(math.isnan(low) for low, _ in intervals["hour"])
    assert all(math.isfinite(low) for low, _ in intervals["group"] + intervals["window"])
    assert intervals["group"] != intervals["window"]
    values = [[row.metrics["ne"] for row in models] for models in found.values()]
    assert values[0] == values[1] == values[2]


def test_p_values_are_corrected_for_every_comparison_of_their_table(run_dir: Path) -> None:
    report = run(run_dir, "report")
    values = json.loads((run_dir / "report" / "report.json").read_text())
    rows = [row.comparison for row in report.metrics]
    assert values["comparisons_made"] == {"metrics": len(METRICS), "models": 6}
    assert [one.p_holm for one in rows] == holm([one.p for one in rows])
    of_models = {row.model: row.p for row in report.models}
    assert math.isnan(of_models.pop("plain"))
    smallest = min(of_models, key=lambda model: of_models[model])
    found = values["models"]["feed"][smallest]["ne"]
    assert found["p_holm"] == pytest.approx(6 * of_models[smallest])
    table = (run_dir / "report" / "table.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith("| feed | NE |"))
    assert f" | {p_text(rows[0].p_holm)} | " in line
    assert "PR-AUC" not in table and "recall" not in table  # the terminal's table stays short


def test_slices_have_the_metrics_of_their_rows(run_dir: Path) -> None:
    schema = Schema.load(run_dir / "windows")
    feature = CategoricalFeature("user", 50)
    replace(schema, categorical=[feature]).save(run_dir / "windows")
    frames = {}
    for window in schema.windows:
        path = run_dir / "students/feed/plain/seed-1/predictions" / f"{window.name}.parquet"
        frames[window.name] = pl.read_parquet(path)
        (run_dir / "windows" / window.name).mkdir()
        frames[window.name].select("example_id", user="group").write_parquet(
            run_dir / "windows" / window.name / "part-00000.parquet"
        )
    run(run_dir, "report")
    slices = json.loads((run_dir / "report" / "report.json").read_text())["slices"]["feed"]
    assert list(slices) == ["coldness", "domain", "hour", "window"]
    assert {name: one["rows"] for name, one in slices["domain"].items()} == {"feed": ROWS}
    assert {name: one["rows"] for name, one in slices["window"].items()} == {
        "w1": ROWS // 2,
        "w2": ROWS // 2,
    }
    assert slices["hour"]["00"] == slices["domain"]["feed"]
    first = frames["w0"]["group"].to_list()
    both = first + frames["w1"]["group"].to_list()
    cold = pl.concat(
        [
            frames["w1"].filter(
                pl.Series([1 <= first.count(user) < 10 for user in frames["w1"]["group"]])
            ),
            frames["w2"].filter(
                pl.Series([1 <= both.count(user) < 10 for user in frames["w2"]["group"]])
            ),
        ]
    )
    found = slices["coldness"]["1 to 9"]
    assert 0 < found["rows"] == cold.height < ROWS
    joined = [
        pl.read_parquet(
            run_dir / "students/feed/distilled" / f"seed-{seed}" / "predictions" / f"{name}.parquet"
        )
        for name in ("w1", "w2")
        for seed in (1, 2)
    ]
    ne = [
        normalized_entropy(own["logit"].to_numpy(), own["label"].to_numpy())
        for own in (
            pl.concat(joined[seed::2]).join(cold, on="example_id", how="semi") for seed in (0, 1)
        )
    ]
    distilled, plain = (found["models"][model] for model in ("distilled", "plain"))
    assert distilled["ne"] == pytest.approx(np.mean(ne))
    assert distilled["difference"] == pytest.approx(distilled["ne"] - plain["ne"])
    assert distilled["low"] < distilled["difference"] < distilled["high"]
