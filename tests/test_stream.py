"""The stream through its real commands, killed and run twice at once, beside `dvc repro` over the
finished log."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from flows.augment import augment
from flows.baselines import baselines
from flows.command_line import STATUS_OF_A_MISTAKE, exit_status
from flows.evaluate import evaluate
from flows.partition import partition
from flows.stream import main, stream, watch
from flows.students import students
from flows.teacher import teacher
from recsys.evaluation.model_table import BASELINES
from recsys.serving.publication import current, full_folder
from tests.support.files import contents
from tests.support.mlflow_stores import wait_until_delivered
from tests.support.prefect_server import shared_server
from tests.support.projects import copy_project, environment, run
from tests.support.stages import run_stages

WINDOWS = 5
SETTINGS = {
    "data.max_windows": "3",
    "stream.poll_seconds": "0.3",
    "train.world_size": "2",
    "train.global_batch_size": "128",
    "teacher.model.dense_layers": "[16]",
    "teacher.model.over_layers": "[16]",
    "teacher.checkpoint_every_batches": "5",
    "students.seeds": "[1]",
    "towers.partition.probe_windows": "2",
    "students.table_learning_rate": "null",  # choices: tests/recsys/distill/test_recipe_choice.py
    "students.distillation.rows": "own",
    "teacher.rate_auto_windows": "2",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "20",
}
ROWS_LINE, FEWER_ROWS = "rows: 240000", "rows: 12000"
BATCH = (partition, baselines, teacher, augment, students, evaluate)
RESULTS = {"teacher": "models/teacher", "scores": "data/scores", "students": "models/students"}
WAIT_SECONDS = 300
pytestmark = pytest.mark.slow


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.stream", *options]
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def call(folder: Path, function: Callable[[], None], status: int = 0) -> str:
    """What a command's function, called here with the exit ``status``, prints."""
    said = StringIO()
    with (
        pytest.MonkeyPatch.context() as within,
        shared_server(),
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        within.chdir(folder)
        assert exit_status(function) == status, said.getvalue()
    return said.getvalue()


def wait_for(folder: Path, process: subprocess.Popen[str], condition: Callable[[str], bool]) -> str:
    """Wait until ``condition`` holds of the process's output so far; the output."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition(output := (folder / "output.txt").read_text()):
        assert process.poll() is None, output
        assert time.monotonic() < end, output
        time.sleep(0.05)
    return output


def change(folder: Path, name: str, before: str, after: str) -> None:
    path = folder / "params" / f"{name}.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def windows_of(folder: Path) -> list[str]:
    path = folder / "models/stream/lineage.json"
    return (
        [name for entry in json.loads(path.read_text()) for name in entry["windows"]]
        if path.is_file()
        else []
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose log grows, watched, killed in the middle of its work, and ended by a plain
    run; on two ranks."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    change(folder, "datasets/synthetic", ROWS_LINE, FEWER_ROWS)
    change(folder, "datasets/synthetic", "windows: 12 ", f"windows: {WINDOWS} ")
    options = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    watcher = start(folder, "--watch", *options)
    try:
        wait_for(
            folder, watcher, lambda _: any(folder.glob(".work/stream/*/checkpoints/teacher/*"))
        )
        (folder / "busy.txt").write_text(call(folder, stream, STATUS_OF_A_MISTAKE))
        wait_for(folder, watcher, lambda text: "2 new windows, 2 in all" in text)
        (folder / "second.txt").write_text(call(folder, watch, STATUS_OF_A_MISTAKE))
        change(folder, "data", "max_windows: 3", "max_windows: 4")
        wait_for(
            folder,
            watcher,
            lambda _: any(folder.glob(".work/stream/*/checkpoints/teacher/000002-*[1-9]")),
        )
    finally:
        watcher.send_signal(signal.SIGKILL)
        watcher.wait()
    (folder / "taken_when_killed.json").write_text(json.dumps(windows_of(folder)))
    result = run(folder, sys.executable, "-m", "flows.stream", "--set", "data.max_windows=null")
    (folder / "after_kill.txt").write_text(result.stdout + result.stderr)
    change(folder, "stream", "finished: false", "finished: true")
    (folder / "finished.txt").write_text(call(folder, stream))
    return folder


@pytest.fixture(scope="module")
def repeated(project: Path) -> Path:
    """The project with the results of the batch stages besides."""
    call(project, lambda: run_stages(*BATCH))
    return project


def test_a_second_watcher_and_a_run_beside_a_running_one_end_with_one_line(project: Path) -> None:
    for name, expected in (
        ("second.txt", "another run is watching the log"),
        ("busy.txt", "another run is taking"),
    ):
        errors = [
            line for line in (project / name).read_text().splitlines() if line.startswith("error: ")
        ]
        assert len(errors) == 1
        assert expected in errors[0]
        assert "Traceback" not in (project / name).read_text()


def test_a_killed_run_goes_on_and_all_windows_but_the_last_are_taken_until_the_log_ends(
    project: Path,
) -> None:
    assert len(json.loads((project / "taken_when_killed.json").read_text())) == 2
    after = (project / "after_kill.txt").read_text()
    assert "checkpoints: resumes at window 3, batch" in after
    assert "2 new windows, 4 in all" in after
    assert "1 new windows, 5 in all" in (project / "finished.txt").read_text()


def test_the_finished_streams_results_are_the_batch_pipelines_bit_for_bit(repeated: Path) -> None:
    for name, batch in RESULTS.items():
        assert contents(repeated / "models/stream" / name) == contents(repeated / batch), name
    of_stream, of_batch = (
        (repeated / folder / "windows.csv").read_text().splitlines()
        for folder in ("reports/stream", "reports/evaluation")
    )
    is_baseline = tuple(f"{student}/{name}," for student in ("feed", "video") for name in BASELINES)
    assert sorted(of_stream) == sorted(row for row in of_batch if not row.startswith(is_baseline))


def test_students_rerun_bit_for_bit_without_the_cache(repeated: Path) -> None:
    before = contents(repeated / "models/students")
    run(repeated, "dvc", "repro", "--single-item", "--force", "--no-run-cache", "students")
    assert contents(repeated / "models/students") == before


def test_a_change_of_the_transform_reruns_the_teacher_not_the_partition_and_keeps_predictions(
    repeated: Path,
) -> None:
    metrics = repeated / "models/teacher/metrics.json"
    before = json.loads(metrics.read_text())["windows"]
    changed = [repeated / name for name in ("params/towers.yaml", "dvc.lock")]
    saved = {path: path.read_text() for path in changed}
    enabled = "enabled: true               # each tower"
    change(repeated, "towers", enabled, enabled.replace("true ", "false"))
    said = run(repeated, "dvc", "repro", "teacher").stdout
    after = json.loads(metrics.read_text())["windows"]
    for path, text in saved.items():
        path.write_text(text)
    run(repeated, "dvc", "checkout", "teacher")
    assert "Running stage 'teacher'" in said
    assert "Running stage 'partition'" not in said
    assert [row["ne"] for row in after] == pytest.approx([row["ne"] for row in before], abs=1e-4)


def test_dvc_sees_nothing_of_the_stream(repeated: Path) -> None:
    assert "up to date" in run(repeated, "dvc", "status", "evaluate").stdout
    assert "models/stream" not in (repeated / "dvc.lock").read_text()
    assert (
        "stream"
        not in run(repeated, "git", "status", "--porcelain", "models", "reports", ".work").stdout
    )


def test_each_batch_of_windows_is_a_version_that_a_running_server_can_follow(
    project: Path,
) -> None:
    for student in ("feed", "video"):
        folder = project / "models/published" / student
        now = current(folder)
        assert now is not None and now.version == 3  # of 2, 2 and 1 windows
        arms = (project / "models/stream/students" / student).glob("*/export")
        assert contents(full_folder(folder, 3)) in [contents(export) for export in arms]


def test_mlflow_has_one_run_per_model_with_every_window_and_its_lineage_and_the_newest_models(
    project: Path,
) -> None:
    script = """
import json, mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("towerflow").experiment_id
runs = client.search_runs([experiment], "tags.kind = 'stream'")
lineage = json.loads(mlflow.artifacts.load_text(f"runs:/{runs[0].info.run_id}/lineage.json"))
served = mlflow.pyfunc.load_model("models:/towerflow-feed@stream")
print(json.dumps({
    "names": sorted(r.info.run_name for r in runs),
    "steps": [
        sorted(m.step for m in client.get_metric_history(r.info.run_id, "window/ne")) for r in runs
    ],
    "tags": [[r.data.tags["data_version"], r.data.tags["windows"]] for r in runs],
    "digests": len(runs[0].inputs.dataset_inputs),
    "lineage": [[len(entry["windows"]), entry["data_version"]] for entry in lineage],
    "probabilities": [float(p) for p in served.predict(served.input_example)],
}))
"""
    wait_until_delivered(project)
    seen = json.loads(run(project, sys.executable, "-c", script).stdout.strip().splitlines()[-1])
    students = [
        f"stream: {student}-{arm}-seed-1"
        for student in ("feed", "video")
        for arm in ("all_rows", "distilled", "plain")
    ]
    assert seen["names"] == sorted([*students, "stream: teacher"])
    assert seen["steps"] == [list(range(WINDOWS))] * len(seen["names"])
    data_version = seen["lineage"][-1][1]
    assert seen["tags"] == [[data_version, str(WINDOWS)]] * len(seen["names"])
    assert [count for count, _ in seen["lineage"]] == [2, 2, 1]
    assert seen["digests"] == len({version for _, version in seen["lineage"]}) == 2
    assert all(0 < p < 1 for p in seen["probabilities"])


def test_nothing_new_is_said_and_changes_nothing(project: Path) -> None:
    before = contents(project / "models/stream")
    assert "0 new windows, 5 in all" in call(project, stream)
    assert contents(project / "models/stream") == before


def test_a_mistake_is_one_line_and_loses_nothing(project: Path) -> None:
    before = contents(project / "models/stream")
    saved = {path: path.read_text() for path in (project / "params").glob("*.yaml")}
    said = call(
        project, lambda: main({"stream.poll_seconds": "-1"}, False, False), STATUS_OF_A_MISTAKE
    )
    for path, text in saved.items():
        path.write_text(text)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "params/stream.yaml: key 'poll_seconds'" in errors[0]
    assert "Traceback" not in said
    assert contents(project / "models/stream") == before
