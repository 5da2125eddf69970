"""The main job on a small stream, through its real commands: Prefect, DVC and MLflow included."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.projects import ROOT, copy_project, run

SMALL = {
    "data.max_windows": "4",
    "students.seeds": "[1]",
    "towers.partition.probe_windows": "2",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "50",
}
pytestmark = pytest.mark.slow


def hashes(folder: Path) -> dict[str, str]:
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def _cluster(runner: str) -> Any:
    """A parameter that is skipped where the runner's package is not installed."""
    missing = find_spec(f"prefect_{runner}") is None
    return pytest.param(
        runner, marks=pytest.mark.skipif(missing, reason=f"needs pip install 'towerflow[{runner}]'")
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the pipeline has run once."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    options = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    result = run(folder, sys.executable, "-m", "flows.pipeline", *options)
    (folder / "output.txt").write_text(result.stdout)
    return folder


def test_it_ends_with_the_comparison_and_the_two_commands(project: Path) -> None:
    output = (project / "output.txt").read_text()
    for expected in ("NE", "AUC", "gAUC", "LogLoss", "make mlflow", "make prefect"):
        assert expected in output


def test_accuracy_stays_at_the_bars(project: Path) -> None:
    report = json.loads((project / "reports/evaluation/report.json").read_text())["students"]
    bars = json.loads((ROOT / "tests/bars.json").read_text())
    for student, metrics in report.items():
        for metric, bar in bars[student].items():
            for model in ("plain", "distilled", "teacher"):
                assert metrics[metric][model] == pytest.approx(bar[model], abs=bar["tolerance"])


def test_both_doors_agree_that_nothing_is_left_to_do(project: Path) -> None:
    assert "up to date" in run(project, "dvc", "status").stdout
    before = hashes(project)
    assert "up to date" in run(project, "dvc", "repro").stdout
    assert hashes(project) == before


def test_deleted_outputs_come_back_with_the_same_hashes(project: Path) -> None:
    before = hashes(project)
    shutil.rmtree(project / "data")
    shutil.rmtree(project / "models")
    run(project, "dvc", "checkout")
    assert "up to date" in run(project, "dvc", "status").stdout
    assert hashes(project) == before


def test_students_rerun_bit_for_bit_without_the_cache(project: Path) -> None:
    before = hashes(project)
    run(project, "dvc", "repro", "--single-item", "--force", "--no-run-cache", "students")
    assert hashes(project)["models/students"] == before["models/students"]


@pytest.mark.parametrize("runner", [_cluster("dask"), _cluster("ray")])
def test_a_cluster_scores_the_bytes_that_threads_have_scored(project: Path, runner: str) -> None:
    scores, settings = project / "data/scores", project / "params/augment.yaml"
    before = {
        path.relative_to(scores): path.read_bytes() for path in scores.rglob("*") if path.is_file()
    }
    saved = settings.read_text()
    shutil.rmtree(scores)
    shutil.rmtree(project / ".work/scores")
    options = ("--set", f"augment.runner={runner}", "--set", "augment.parallel_tasks=2")
    run(project, sys.executable, "-m", "flows.augment", *options)
    settings.write_text(saved)
    assert {
        path.relative_to(scores): path.read_bytes() for path in scores.rglob("*") if path.is_file()
    } == before
    assert len(before) > 1


def test_a_changed_key_reruns_only_what_depends_on_it(project: Path) -> None:
    before = hashes(project)
    result = run(
        project,
        sys.executable,
        "-c",
        "from flows.command_line import apply_overrides as a; a({'evaluate.confidence': '0.9'})",
    )
    result = run(project, "dvc", "repro")
    assert "Running stage 'evaluate'" in result.stdout
    assert "Running stage 'students'" not in result.stdout
    assert hashes(project)["models/students"] == before["models/students"]
    assert hashes(project)["reports/evaluation"] != before["reports/evaluation"]


def test_a_change_of_the_transform_reruns_the_teacher_not_the_partition_and_keeps_predictions(
    project: Path,
) -> None:
    before = json.loads((project / "models/teacher/metrics.json").read_text())["windows"]
    partition = hashes(project)["models/partition"]
    saved = {
        path: path.read_text() for path in (project / "params/towers.yaml", project / "dvc.lock")
    }
    path = project / "params/towers.yaml"
    path.write_text(
        path.read_text().replace(
            "enabled: true               # each tower", "enabled: false  # each tower"
        )
    )
    result = run(project, "dvc", "repro", "teacher")
    after = json.loads((project / "models/teacher/metrics.json").read_text())["windows"]
    for path, text in saved.items():
        path.write_text(text)
    run(project, "dvc", "checkout", "teacher")
    assert "Running stage 'teacher'" in result.stdout
    assert "Running stage 'partition'" not in result.stdout
    assert hashes(project)["models/partition"] == partition
    assert [row["ne"] for row in after] == pytest.approx([row["ne"] for row in before], abs=1e-4)


def test_mlflow_holds_runs_with_curves_and_a_registered_model_that_predicts(project: Path) -> None:
    script = """
import json, mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("towerflow").experiment_id])
teacher = next(r for r in runs if r.data.tags["kind"] == "teacher")
model = client.search_registered_models()[0].name
served = mlflow.pyfunc.load_model(f"models:/{model}@champion")
predicted = served.predict(served.input_example)
print(json.dumps({
    "kinds": sorted({r.data.tags["kind"] for r in runs}),
    "curve": len(client.get_metric_history(teacher.info.run_id, "window/ne")),
    "digest": teacher.inputs.dataset_inputs[0].dataset.digest,
    "probabilities": [float(p) for p in predicted],
}))
"""
    seen = json.loads(run(project, sys.executable, "-c", script).stdout.strip().splitlines()[-1])
    assert {"comparison", "model", "student", "teacher"} <= set(seen["kinds"])
    assert seen["curve"] == 4
    assert seen["digest"] == hashes(project)["data/windows"]
    assert all(0 < p < 1 for p in seen["probabilities"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.dataset=sinthetic", "did you mean 'synthetic'?"),
        ("data.datset=synthetic", "no such key"),
        ("train.world_size=two", "train.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_loses_nothing(
    project: Path, override: str, expected: str
) -> None:
    saved = {path: path.read_text() for path in (project / "params").glob("*.yaml")}
    before = hashes(project)
    stage = "ingest" if override.startswith("data") else "partition"
    result = run(project, sys.executable, "-m", f"flows.{stage}", "--set", override, status=2)
    for path, text in saved.items():
        path.write_text(text)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in result.stderr
    assert hashes(project) == before
    assert (project / "data/windows/schema.json").is_file()


LOG_YAML = """
format: table
table:
  files: [{file}]
  file_format: csv
  time: {{column: time, unit: s}}
  label: clicked
  dense: [price]
  categorical: [{{column: {column}, table_rows: 100}}]
"""


@pytest.mark.parametrize(
    ("file", "column", "label", "expected"),
    [
        ("logg.csv", "ad", "1", "logg.csv"),
        ("log.csv", "adv", "1", "no column 'adv'; did you mean 'ad'?"),
        ("log.csv", "ad", "2", "20 of 40 rows are bad"),
    ],
)
def test_a_bad_log_is_one_line_and_loses_nothing(
    project: Path, tmp_path: Path, file: str, column: str, label: str, expected: str
) -> None:
    rows = [f"{time},{label if time % 2 else 0},{time % 7},{time / 3}" for time in range(40)]
    (tmp_path / "log.csv").write_text("time,clicked,ad,price\n" + "\n".join(rows) + "\n")
    saved = (project / "params/data.yaml").read_text()
    description = project / "params/datasets/mine.yaml"
    description.write_text(LOG_YAML.format(file=file, column=column))
    before = sorted(path.name for path in (project / "data").rglob("*"))
    options = ["--set", "data.dataset=mine", "--set", f"data.root={tmp_path}"]
    result = run(project, sys.executable, "-m", "flows.ingest", *options, status=2)
    (project / "params/data.yaml").write_text(saved)
    description.unlink()
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (project / "data").rglob("*")) == before


def test_tables_that_do_not_fit_are_one_line_with_what_would_fit(project: Path) -> None:
    saved = (project / "params/train.yaml").read_text()
    result = run(
        project,
        sys.executable,
        "-m",
        "flows.partition",
        "--set",
        "train.memory_gb=0.0001",
        status=2,
    )
    (project / "params/train.yaml").write_text(saved)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "memory_gb" in errors[0]
    assert "Traceback" not in result.stderr
