"""An experiment in MLflow: a run for each model and seed, with its parameters, curves by window and
figure."""

import json
import shutil
from typing import Any

import pytest

from bench.distillation.lab import ARMS, Lab
from bench.distillation.modes import draw
from bench.distillation.results import Found
from bench.distillation.tracking import (
    KIND,
    metric_name,
    track_comparison,
    track_seed,
    tracking_folder,
)
from recsys.data.schema import Schema
from tasks.spool import waiting
from tasks.tracking import connect

ROWS, SEEDS = 600, (1, 2)
STUDENTS_ARMS = {name: ARMS[name] for name in ("plain", "AH")}
LEVELS = {"plain": 0.9, "AH": 0.88, "teacher": 0.85}
COLD = "users seen < 5"


def results_of(lab: Lab) -> Found:
    """NE of each model by slice: over all, of cold users, and of the last two windows."""
    parts = ("all", COLD, *(f"window {number}" for number in (_windows(lab) - 1, _windows(lab))))
    shift = 0.01 * lab.seed
    return {
        name: {part: {"ne": level + shift, "auc": 0.6} for part in parts}
        for name, level in LEVELS.items()
    }


def _windows(lab: Lab) -> int:
    return len(Schema.load(lab.windows).windows)


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> list[Lab]:
    """Two seeds whose teacher and students have written the metrics of their windows."""
    work = tmp_path_factory.mktemp("work")
    made = [Lab(work, "shifted", seed, ROWS, 1, work) for seed in SEEDS]
    for lab in made:
        lab.make_windows()
        folders = [
            lab.folder / f"students/{d}/{arm}/seed-{lab.seed}"
            for d in lab.domains
            for arm in STUDENTS_ARMS
        ]
        for folder in (*folders, lab.folder / "teacher"):
            folder.mkdir(parents=True)
            windows = [{"ne": 1.0 - 0.01 * index, "auc": None} for index in range(_windows(lab))]
            (folder / "metrics.json").write_text(json.dumps({"windows": windows}))
    return made


@pytest.fixture(scope="module")
def runs(labs: list[Lab], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What MLflow holds after the results were logged twice."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree("params", project / "params")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        found = [results_of(lab) for lab in labs]
        figure = draw(tracking_folder(labs[0]), "shifted", found)
        for _ in range(2):
            for lab, one in zip(labs, found, strict=True):
                track_seed("compare", lab, STUDENTS_ARMS, one, figures=[figure])
            track_comparison("compare", labs, found, ["| a | b |"], [figure])
        assert not waiting()
        mlflow, experiment_id = connect()
        client = mlflow.MlflowClient()
        held = client.search_runs([experiment_id])
        for run in held:
            name = "window/ne"
            run.curve = [
                (one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)
            ]
            run.files = {one.path for one in client.list_artifacts(run.info.run_id, "figures")}
        return held


def run_of(runs: list[Any], arm: str, seed: int) -> Any:
    (found,) = [
        run
        for run in runs
        if (run.data.tags.get("arm"), run.data.tags.get("seed")) == (arm, str(seed))
    ]
    return found


@pytest.mark.slow
def test_each_model_and_seed_is_one_run_and_logging_again_adds_none(runs: list[Any]) -> None:
    assert len(runs) == len(LEVELS) * len(SEEDS) + 1
    assert sum(run.data.tags["kind"] == KIND for run in runs) == len(LEVELS) * len(SEEDS)
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_run_has_what_decided_it_and_its_metrics_by_slice(runs: list[Any]) -> None:
    run = run_of(runs, "AH", 2)
    assert run.data.params["distillation.gradient_scale"] == "10.0"
    assert run.data.params["stream"] == "shifted"
    assert run.data.params["seed"] == "2"
    assert run.data.metrics["all/ne"] == pytest.approx(0.90)
    assert run.data.metrics["users seen below 5/ne"] == pytest.approx(0.90)
    assert "distillation.gradient_scale" not in run_of(runs, "teacher", 2).data.params


def test_curves_stand_at_their_windows_and_figures_are_artefacts(
    runs: list[Any], labs: list[Lab]
) -> None:
    run, windows = run_of(runs, "AH", 1), _windows(labs[0])
    assert run.curve == [(windows - 2, pytest.approx(0.89)), (windows - 1, pytest.approx(0.89))]
    assert run.data.metrics["feed/window/ne"] == pytest.approx(1.0 - 0.01 * (windows - 1))
    assert run_of(runs, "teacher", 1).data.metrics["teacher/window/ne"] < 1.0
    assert run.files == {"figures/compare_shifted.png"}


def test_seeds_have_data_of_their_own(runs: list[Any]) -> None:
    versions = {
        seed: {run_of(runs, arm, seed).data.tags["data_version"] for arm in LEVELS}
        for seed in SEEDS
    }
    assert all(len(one) == 1 for one in versions.values())
    assert versions[1] != versions[2]


def test_the_comparison_has_the_change_against_no_distillation(runs: list[Any]) -> None:
    (run,) = [run for run in runs if "arm" not in run.data.tags]
    expected = [100 * (0.88 - 0.9) / (0.9 + 0.01 * seed) for seed in SEEDS]
    assert run.data.metrics["AH/ne_change"] == pytest.approx(sum(expected) / 2)
    assert (
        run.data.metrics["AH/low"] < run.data.metrics["AH/ne_change"] < run.data.metrics["AH/high"]
    )


def test_names_have_only_what_mlflow_takes() -> None:
    assert metric_name("users seen < 5/ne") == "users seen below 5/ne"
    assert metric_name("AH, beta = alpha = w = 1/ne") == "AH beta  alpha  w  1/ne"
