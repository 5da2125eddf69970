"""Calibration is fitted on windows before the last, is monotone, and mends what is off; tables of
fewer bits cost little."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.data.schema import Window
from recsys.serving.calibrating import (
    calibration_of,
    chosen_kind,
    fit_isotonic,
    fit_platt,
)
from recsys.serving.calibration import UNCALIBRATED, Isotonic, Platt, map_of, sigmoid
from recsys.serving.predictor import Predictor
from recsys.serving.settings import ExportSettings, Precision
from tests.support.exports import ROW, SCHEMA, toy_export

WINDOWS = [Window(f"w{place}", place, place + 1, 0, 0) for place in range(5)]
DATA = replace(SCHEMA, windows=WINDOWS)
ROWS = 4000


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions whose logits are twice the true ones and 0.5 too high, in feed alone; the first
    window's say nothing, and the last one's labels are all clicks."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "predictions").mkdir()
    draw = np.random.default_rng(4)
    for place, window in enumerate(WINDOWS):
        truth = draw.normal(-1, 1, ROWS)
        clicked = draw.random(ROWS) < sigmoid(truth)
        frame = pl.DataFrame(
            {
                "domain": np.zeros(ROWS, np.int64),
                "label": np.where(place == 4, 1.0, clicked).astype(np.float32),
                "logit": (2 * truth + 0.5 if place else 0 * truth).astype(np.float32),
            }
        )
        frame.write_parquet(folder / f"predictions/{window.name}.parquet")
    return folder


def test_it_is_fitted_before_the_last_window_and_reported_on_it(model_dir: Path) -> None:
    found = calibration_of(model_dir, DATA, ["click"], ExportSettings())
    assert found["fitted_on"] == ["w1", "w2", "w3"] and found["reported_on"] == "w4"
    assert list(found["maps"]) == ["feed"]
    fitted = map_of(found["maps"]["feed"]["click"])
    assert isinstance(fitted, Platt)  # clicks alone in the last window have not moved it
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.5, -0.25), abs=0.05)
    report = found["report"][0]
    assert (report["domain"], report["task"], report["rows"]) == ("feed", "click", ROWS)
    assert report["before"]["calibration"] != report["after"]["calibration"]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (ExportSettings(calibration="isotonic"), "isotonic"),
        (ExportSettings(), "platt"),
        (ExportSettings(calibration="auto", calibration_windows=1), "platt"),
        (ExportSettings(calibration="platt", isotonic_rows=1), "platt"),
        (ExportSettings(calibration="off"), None),
    ],
)
def test_the_kind_is_the_settings(
    model_dir: Path, settings: ExportSettings, kind: str | None
) -> None:
    maps = calibration_of(model_dir, DATA, ["click"], settings)["maps"]
    assert maps.get("feed", {}).get("click", {}).get("kind") == kind


@pytest.mark.parametrize("way", ["platt", "isotonic", "off"])
def test_probabilities_are_of_all_rows_where_negatives_were_left_out(
    tmp_path: Path, way: Any
) -> None:
    draw = np.random.default_rng(5)
    (tmp_path / "predictions").mkdir()
    kept_truth = []
    for window in WINDOWS:
        truth = draw.normal(-2, 1, 20_000)
        clicked = draw.random(20_000) < sigmoid(truth)
        kept = clicked | (draw.random(20_000) < 0.1)
        kept_truth.append(truth[kept])
        frame = pl.DataFrame(
            {
                "domain": np.zeros(kept.sum(), np.int64),
                "label": clicked[kept].astype(np.float32),
                "logit": (truth[kept] - np.log(0.1)).astype(np.float32),  # as the kept rows say
            }
        )
        frame.write_parquet(tmp_path / f"predictions/{window.name}.parquet")
    data = replace(DATA, negative_rates=[0.1, 0.5])
    found = calibration_of(tmp_path, data, ["click"], ExportSettings(calibration=way))
    served = map_of(found["maps"]["feed"]["click"])
    truth = kept_truth[-1]
    logits = (truth - np.log(0.1)).astype(np.float32)
    assert served(logits).mean() / sigmoid(truth).mean() == pytest.approx(1, abs=0.03)
    # Video, which has no rows, is corrected by its own rate
    assert map_of(found["maps"]["video"]["click"])(np.zeros(1)) == pytest.approx(1 / 3)
    for one in found.get("report", []):  # of the rows that are there
        assert one["after"]["calibration"] == pytest.approx(1, abs=0.05)


def windows_of(kind: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Logits of four windows that are right, off by a line, or off by steps."""
    draw = np.random.default_rng(5)
    found = []
    for _ in range(4):
        logits = draw.normal(-1, 1.5, 4000).astype(np.float32)
        truth = {
            "right": sigmoid(logits),
            "line": sigmoid(0.5 * logits + 0.3),
            "steps": np.where(logits > -1, 0.4, 0.05),
        }[kind]
        labels = (draw.random(4000) < truth).astype(np.float32)
        found.append((logits, labels, np.ones(4000, np.float32)))
    return found


@pytest.mark.parametrize(
    ("truth", "kind"), [("right", None), ("line", "platt"), ("steps", "isotonic")]
)
def test_what_would_have_helped_so_far_is_chosen(truth: str, kind: str | None) -> None:
    windows = windows_of(truth)
    assert chosen_kind(windows, ["platt", "isotonic"], 3) == kind
    if kind == "isotonic":
        assert chosen_kind(windows, ["platt"], 3) == "platt"
    assert chosen_kind(windows[:1], ["platt", "isotonic"], 3) is None  # nothing to judge it on


def test_a_domain_that_needs_no_map_has_none_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    windows = windows_of("right")
    for window, (logits, labels, _) in zip(WINDOWS, [windows[0], *windows], strict=True):
        rows = {"domain": np.zeros(len(labels), np.int64), "label": labels, "logit": logits}
        pl.DataFrame(rows).write_parquet(tmp_path / f"predictions/{window.name}.parquet")
    found = calibration_of(tmp_path, DATA, ["click"], ExportSettings())
    assert found["maps"] == {} and found["report"][0]["kind"] == "none"
    assert found["report"][0]["before"] == found["report"][0]["after"]


def test_a_map_never_falls_and_brings_the_mean_to_the_click_rate() -> None:
    draw = np.random.default_rng(6)
    logits = draw.normal(-2, 2, 3000).astype(np.float32)
    labels = (draw.random(3000) < sigmoid(0.3 * logits - 1)).astype(np.float32)
    ordered = np.sort(logits)
    assert abs(UNCALIBRATED(logits).mean() / labels.mean() - 1) > 0.05
    once = np.ones(3000)
    for fitted in (fit_platt(logits, labels, once), fit_isotonic(logits, labels, once)):
        assert (np.diff(fitted(ordered)) >= 0).all()
        assert fitted(logits).mean() == pytest.approx(labels.mean(), rel=0.01)
        beyond = fitted(np.array([-1e30, 1e30], np.float32))
        assert (beyond >= 0).all() and (beyond <= 1).all()
    against = fit_platt(-logits, labels, once)
    assert against.slope == 1.0  # a model that is worse than none is not turned round


def test_a_row_of_weight_two_counts_as_two() -> None:
    draw = np.random.default_rng(7)
    logits = draw.normal(-1, 2, 600).astype(np.float32)
    labels = (draw.random(600) < sigmoid(0.5 * logits)).astype(np.float32)
    weights = draw.integers(1, 4, 600)
    rows, once = np.repeat(np.arange(600), weights), np.ones(int(weights.sum()))
    inside = np.linspace(-3, 3, 50).astype(np.float32)  # half a row at the ends is another half
    for fit in (fit_platt, fit_isotonic):
        weighted = fit(logits, labels, weights.astype(np.float64))
        repeated = fit(logits[rows], labels[rows], once)
        assert weighted(inside) == pytest.approx(repeated(inside), abs=1e-6)


def test_few_labels_change_nothing(model_dir: Path) -> None:
    short = replace(DATA, windows=WINDOWS[:2])
    assert calibration_of(model_dir, short, ["click"], ExportSettings())["maps"] == {}


def test_the_predictor_applies_the_domains_own_map(tmp_path: Path) -> None:
    own = {"kind": "isotonic", "logits": [-9.0, 9.0], "probabilities": [0.1, 0.3]}
    maps: dict[str, Any] = {"video": {"click": own}}
    toy_export(tmp_path, domain=None, calibration={"maps": maps})
    predictor = Predictor.load(tmp_path)
    rows = [ROW, ROW | {"site": "v"}]
    plain, found = predictor.predict(rows, calibrated=False), predictor.predict(rows)
    logit = np.log(plain / (1 - plain))
    assert found[0] == pytest.approx(plain[0])
    assert found[1] == pytest.approx(Isotonic([-9.0, 9.0], [0.1, 0.3])(logit)[1], abs=1e-6)


@pytest.mark.parametrize(("precision", "largest"), [("fp16", 1e-3), ("int8", 0.02)])
def test_tables_of_fewer_bits_are_smaller_and_close(
    tmp_path: Path, precision: Precision, largest: float
) -> None:
    rows = [ROW | {"user": f"u{place}", "ad": place} for place in range(40)]
    toy_export(tmp_path / "whole")
    toy_export(tmp_path / "small", precision=precision)
    whole, small = (Predictor.load(tmp_path / name) for name in ("whole", "small"))
    assert small.tables.values.nbytes < whole.tables.values.nbytes
    apart = np.abs(small.predict(rows) - whole.predict(rows))
    assert 0 < apart.max() < largest


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rows_are_changed_in_this_process_alone(tmp_path: Path, precision: Precision) -> None:
    toy_export(tmp_path, precision=precision)
    first, second = Predictor.load(tmp_path), Predictor.load(tmp_path)
    before, tables = first.predict([ROW]), first.tables
    rows = np.arange(len(tables.values))
    scales = None if tables.scales is None else np.ones(len(rows), np.float32)
    values = np.zeros_like(tables.values)
    assert tables.takes(rows, values, scales)
    assert not tables.takes(rows + 1, values, scales)  # one lies beyond
    assert not tables.takes(rows, values[:, :-1], scales)
    assert not tables.takes(rows, values.astype(np.float64), scales)
    tables.put(rows, values, scales)
    assert first.predict([ROW]) != before
    np.testing.assert_array_equal(second.predict([ROW]), before)
