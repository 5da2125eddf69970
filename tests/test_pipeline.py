"""The main job on a small stream, through its real commands: Prefect, DVC and MLflow included."""

import json
import logging
import os
import resource
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.augment import augment
from flows.command_line import (
    STATUS_OF_A_MISTAKE,
    exit_status,
    run_stage_flow,
)
from flows.pipeline import pipeline
from tasks.overrides import apply_overrides
from tests.support.files import contents
from tests.support.prefect_server import shared_server
from tests.support.projects import ROOT, copy_project, run

SMALL = {
    "data.max_windows": "4",
    "train.world_size": "1",  # ranks: tests/test_stream.py
    "students.seeds": "[1]",
    "towers.partition.probe_windows": "2",
    "students.auto_windows": "2",
    "students.table_learning_rate": "null",  # rows: auto takes long enough
    "teacher.rate_auto_windows": "2",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "50",
}
FEWER_ROWS = ("rows: 240000", "rows: 96000")
pytestmark = pytest.mark.slow


# Notes each file of params/ that a process opens, beside the stage whose flow is running.
RECORDER = """
import os
import sys

STAGES = {"flows." + name for name in "@STAGES".split()}
LOG = "@LOG"


def stage():
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name in STAGES:
            return name.removeprefix("flows.")
        if name.startswith("flows."):
            return "none"  # checks of all settings, between the stages
        frame = frame.f_back
    return ""


def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "params/" in arguments[0]:
        path = os.path.relpath(arguments[0])
        descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, (stage() + " " + path + "\\n").encode())
        os.close(descriptor)


if "dvc" not in sys.orig_argv:
    sys.addaudithook(note)
"""
OF_NO_RESULT = {"params/tracking.yaml", "params/prefect.yaml"}  # where and how runs are shown


def stages(folder: Path) -> dict[str, Any]:
    """dvc.yaml's stages, without the one that writes down their code."""
    found = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    return {name: spec for name, spec in found.items() if name != "code"}


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
    """A copy of the project in which the pipeline has run once, by a server of its own as where
    none is configured."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    description = folder / "params/datasets/synthetic.yaml"
    description.write_text(description.read_text().replace(*FEWER_ROWS))
    with chdir(folder):
        apply_overrides(SMALL)
    log = tmp_path_factory.mktemp("opened") / "opened.txt"
    recorder = RECORDER.replace("@STAGES", " ".join(stages(folder))).replace("@LOG", str(log))
    (log.parent / "sitecustomize.py").write_text(recorder)
    python_path = f"{folder}{os.pathsep}{log.parent}"
    alone = ("env", "-u", "PREFECT_API_URL", f"PYTHONPATH={python_path}")
    result = run(folder, *alone, sys.executable, "-m", "flows.pipeline")
    shutil.copy(log, folder / "opened.txt")
    (folder / "output.txt").write_text(result.stdout)
    (folder / "progress.txt").write_text(result.stderr)
    return folder


def test_it_ends_with_the_comparison_and_the_two_commands(project: Path) -> None:
    output = (project / "output.txt").read_text()
    said = ("make mlflow", "make prefect", "reports/evaluation/report.html", "git add dvc.lock")
    for expected in ("NE", "AUC", "gAUC", "LogLoss", *said):
        assert expected in output


def test_it_says_what_is_happening_without_warnings_of_libraries(project: Path) -> None:
    assert (project / "output.txt").read_text().startswith("Eight stages, from the raw log")
    said = (project / "progress.txt").read_text()
    assert "rows (each predicted, then trained on in every pass) in " in said
    assert [line for line in said.splitlines() if "warning" in line.lower()] == []
    assert "INFO:prefect" not in said  # but Prefect's own format, with the time
    assert "Starting temporary server" not in said  # by Prefect, which would wait for it
    assert "View at" not in said  # nobody can, once the run has ended


def test_accuracy_stays_at_the_bars(project: Path) -> None:
    report = json.loads((project / "reports/evaluation/report.json").read_text())["models"]
    bars = json.loads((ROOT / "tests/bars.json").read_text())
    for student, models in report.items():
        for metric, bar in bars[student].items():
            for model in bar.keys() - {"tolerance"}:
                value = models[model][metric]["value"]
                assert value == pytest.approx(bar[model], abs=bar["tolerance"]), model


def test_both_doors_agree_that_nothing_is_left_to_do(project: Path) -> None:
    assert "up to date" in run(project, "dvc", "status").stdout
    before = hashes(project)
    assert "up to date" in run(project, "dvc", "repro").stdout
    assert hashes(project) == before


def test_each_stage_depends_on_every_settings_file_that_it_opens(project: Path) -> None:
    opened: dict[str, set[str]] = {name: set() for name in stages(project)}
    current = ""
    for line in (project / "opened.txt").read_text().splitlines():
        stage, path = line.split(" ")
        current = stage or current  # a rank or a thread of the stage that is running
        if current in opened:
            opened[current].add(path)
    assert "params/teacher.yaml" in opened["teacher"]
    assert "params/datasets/synthetic.yaml" in opened["ingest"]
    for name, spec in stages(project).items():
        known = [Path(dep.replace("${dataset}", "synthetic")) for dep in spec["deps"]]
        known += [Path(path) for parameters in spec["params"] for path in parameters]
        unknown = {
            path for path in opened[name] if not any(Path(path).is_relative_to(k) for k in known)
        }
        assert opened[name]
        assert unknown <= OF_NO_RESULT, name


def test_dvcs_verbs_answer_with_the_students_numbers(project: Path, tmp_path: Path) -> None:
    shown = json.loads(run(project, "dvc", "metrics", "show", "--json").stdout)
    (numbers,) = shown[""]["data"].values()
    report = json.loads((project / "reports/evaluation/report.json").read_text())
    ne = report["models"]["feed"]["distilled"]["ne"]["value"]
    assert numbers["data"]["feed"]["distilled"]["ne"] == pytest.approx(ne)
    run(project, "dvc", "plots", "show", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert '"field": "student"' in page  # by the template of .dvc/plots
    assert "feed/distilled" in page


VERBS = """
import shlex
import sys
from pathlib import Path
from dvc.cli import main

for place, command in enumerate(Path(sys.argv[1]).read_text().splitlines()):
    print(f"\\n$ {place}", flush=True)
    assert main(shlex.split(command)) == 0, command
"""


def answers(folder: Path, *verbs: str) -> list[str]:
    """What each of DVC's commands prints; all from one process, since its imports take a second."""
    commands = folder.parent / "commands"
    commands.write_text("\n".join(verbs))
    said = run(folder, sys.executable, "-c", VERBS, str(commands)).stdout
    return [one.partition("\n")[2].strip() for one in said.split("\n$ ")[1:]]


@pytest.fixture(scope="module")
def committed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose result is committed, for tests that may change it."""
    folder = tmp_path_factory.mktemp("committed") / "project"
    shutil.copytree(project, folder, symlinks=True)
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for words in (["add", "."], ["commit", "--quiet", "--message", "students of May"]):
        run(folder, "git", *author, *words)
    return folder


def test_dvcs_experiments_and_differences_answer(committed: Path, tmp_path: Path) -> None:
    """As docs/tools.md shows them."""
    setting = "-S params/evaluate.yaml:first_evaluation_window"
    _, parameters, metrics, shown, _plots, alone, _, queue, _, dag = answers(
        committed,
        f"exp run {setting}=3 evaluate",
        "params diff",
        "metrics diff --json",
        "exp show --json",
        f"plots diff HEAD --out {tmp_path}",
        "repro -s evaluate",
        f"exp run --queue {setting}=2 evaluate",
        "queue status",
        "queue remove --queued",
        "dag --mermaid",
    )
    row = ["params/evaluate.yaml", "first_evaluation_window", "2", "3"]
    assert parameters.splitlines()[1].split() == row
    (changed,) = json.loads(metrics).values()
    numbers = changed["feed.distilled.ne"]
    assert numbers["new"] - numbers["old"] == pytest.approx(numbers["diff"])
    assert numbers["diff"] != 0
    workspace, head = json.loads(shown)
    assert workspace["rev"] == "workspace"
    assert (
        workspace["data"]["params"]["params/evaluate.yaml"]["data"]["first_evaluation_window"] == 3
    )
    (found,) = workspace["data"]["metrics"].values()
    assert found["data"]["feed"]["distilled"]["ne"] == pytest.approx(numbers["new"])
    assert len(head["experiments"]) == 1
    assert {"HEAD", "workspace"} <= set((tmp_path / "index.html").read_text().split('"'))
    assert "Stage 'evaluate' didn't change, skipping" in alone
    assert "Queued" in queue
    assert '["students"]' in dag


def test_results_are_pushed_and_pulled_and_what_no_commit_uses_goes(
    committed: Path, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    unused = committed / ".dvc/cache/files/md5/00" / ("0" * 30)
    unused.parent.mkdir(exist_ok=True)
    unused.write_text("of no commit")
    store = f"remote add --default store {remote}"
    _, pushed, _, cloud = answers(
        committed, store, "push", "gc --workspace --all-commits --force", "status --cloud"
    )
    assert "files pushed" in pushed
    assert "in sync" in cloud
    assert not unused.exists()
    before = contents(committed / "models/students")
    shutil.rmtree(committed / ".dvc/cache")
    shutil.rmtree(committed / "models/students")
    answers(committed, "pull")
    assert contents(committed / "models/students") == before


def test_a_change_of_one_student_trains_that_student_alone(committed: Path) -> None:
    before = contents(committed / "models/students")
    own = "{name: video, domain: video, model: {over_layers: [16]}}"
    with edited(committed / "params/students.yaml", "{name: video, domain: video}", own):
        result = run(committed, sys.executable, "-m", "dvc", "repro", "-s", "students")
    assert "students: 3 of 6 trainings are unchanged and reused" in result.stderr
    after = contents(committed / "models/students")
    for path in before.keys() | after.keys():
        if path.startswith("feed/"):
            assert after[path] == before[path]
    assert after["video/plain/seed-1/metrics.json"] != before["video/plain/seed-1/metrics.json"]


def processor_seconds(folder: Path, *command: str) -> float:
    """What the command and all that it starts take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(folder, *command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", [("-m", "flows.pipeline"), ("-m", "dvc", "repro")])
def test_nothing_to_do_takes_at_most_5_seconds(project: Path, command: tuple[str, ...]) -> None:
    assert processor_seconds(project, sys.executable, *command) < 5


def test_nothing_to_do_is_said_with_the_comparison_and_without_prefect_or_torch(
    project: Path,
) -> None:
    shutil.rmtree(project / "models/teacher")  # comes back from DVC's cache
    result = run(project, sys.executable, "-X", "importtime", "-m", "flows.pipeline")
    assert result.stdout.startswith("Nothing to do: every stage is up to date.\n")
    assert "gAUC" in result.stdout
    assert (project / "models/teacher/metrics.json").is_file()
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "recsys.evaluation.printed" in imported
    assert not {"prefect", "torch", "mlflow", "numpy", "polars"} & imported


def test_the_flow_itself_shows_each_stage_as_cached(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(project)
    logger = logging.getLogger("prefect.task_runs")
    logger.addHandler(caplog.handler)
    with shared_server():
        pipeline()
    logger.removeHandler(caplog.handler)
    for stage in stages(project):
        assert f"Cached('{stage} is up to date'" in caplog.text


STALE = """
import json
import os
import sys
from pathlib import Path
from dvc.repo import Repo
from tasks.versioning import settled_stages


def by_door():
    first = list(Repo().status())
    flow = list(settled_stages())
    status = list(Repo().status())
    repro = [stage.name for stage in Repo().reproduce(dry=True)]
    print(json.dumps({"first": first, "flow": flow, "status": status, "repro": repro}), flush=True)


for name, text in json.loads(sys.argv[1]):
    saved = Path(name).read_text()
    Path(name).write_text(text)
    process = os.fork()  # the project's code may not change under a process
    if process == 0:
        by_door()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    Path(name).write_text(saved)
    assert status == 0, name
"""


def stale(folder: Path, edited: list[tuple[str, str]]) -> list[dict[str, set[str]]]:
    """The stages that have to run after each edit (file, its new text) alone, by each door: ``dvc
    status`` at first, then, with the code written down, the flow, ``dvc status`` and ``dvc
    repro``. All from one process, since DVC's imports take a second."""
    said = run(folder, sys.executable, "-c", STALE, json.dumps(edited)).stdout.splitlines()
    found = [json.loads(line) for line in said if line.startswith('{"first"')]
    return [{door: set(stages) for door, stages in one.items()} for one in found]


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """The file with the first ``old`` changed to ``new``, for a while."""
    saved = path.read_text()
    assert old in saved
    path.write_text(saved.replace(old, new, 1))
    try:
        yield
    finally:
        path.write_text(saved)


LOADER, FORMULA = "recsys/data/loader.py", "np.where(missing, 0.0, values)"
READERS = {"baselines", "partition", "teacher", "augment", "students"}


EDITS = [
    (LOADER, FORMULA, "np.where(missing, 0.0, 10.0 * values)", READERS),
    (LOADER, FORMULA, f"({FORMULA})", set()),
    ("tasks/served_model.py", "len(found) > 1", "len(found) > 2", {"register"}),
    ("recsys/distill/losses.py", "\nimport torch", "\nimport torch\n\nA = 1", {"students"}),
    ("params/evaluate.yaml", "confidence: 0.95", "confidence: 0.9", {"evaluate", "register"}),
    ("requirements/cpu.lock", "torch", "# torch", {"register"}),
    (LOADER, FORMULA, FORMULA, set()),
]


def test_both_doors_agree_on_what_an_edit_makes_stale_and_that_undone_it_does_not(
    project: Path,
) -> None:
    edits, expected = [], []
    for name, old, new, readers in EDITS:
        text = (project / name).read_text()
        assert old in text
        edits.append((name, text.replace(old, new, 1)))
        expected.append({"flow": readers, "status": readers, "repro": readers})
    found = stale(project, edits)
    assert all("code" in doors.pop("first") for doors in found)
    assert found == expected


def test_a_comment_runs_the_code_stage_alone(project: Path) -> None:
    before = hashes(project)
    with edited(project / LOADER, "\nimport numpy", "\n# What the models read.\nimport numpy"):
        assert "code" in json.loads(run(project, "dvc", "status", "--json").stdout)
        result = run(project, "dvc", "repro").stdout
    started = [one.split("'")[1] for one in result.splitlines() if one.startswith("Running stage")]
    assert started == ["code"]
    assert hashes(project) == before
    run(project, "dvc", "repro")
    assert "up to date" in run(project, "dvc", "status").stdout


def test_deleted_outputs_come_back_with_the_same_hashes(project: Path) -> None:
    before = hashes(project)
    shutil.rmtree(project / "data")
    shutil.rmtree(project / "models")
    run(project, "dvc", "checkout")
    assert "up to date" in run(project, "dvc", "status").stdout
    assert hashes(project) == before


def run_augment(overrides: dict[str, str]) -> int:
    """The stage's command, called here: its exit status."""
    with shared_server():
        return exit_status(lambda: run_stage_flow(augment, Namespace(overrides=overrides.items())))


@pytest.mark.parametrize("runner", [_cluster("dask"), _cluster("ray")])
def test_a_cluster_scores_the_bytes_that_threads_have_scored(
    project: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, settings = project / "data/scores", project / "params/augment.yaml"
    before = {
        path.relative_to(scores): path.read_bytes() for path in scores.rglob("*") if path.is_file()
    }
    saved = settings.read_text()
    shutil.rmtree(scores)
    shutil.rmtree(project / ".work/scores")
    monkeypatch.chdir(project)
    assert run_augment({"augment.runner": runner, "augment.parallel_tasks": "2"}) == 0
    settings.write_text(saved)
    assert {
        path.relative_to(scores): path.read_bytes() for path in scores.rglob("*") if path.is_file()
    } == before
    assert len(before) > 1


def test_the_trees_teach_instead_and_the_teachers_scores_come_back_as_they_were(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC knows the files as a dependency, and the two kinds of scores never mix."""
    scores, settings = project / "data/scores", project / "params/augment.yaml"
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["augment"]
    assert "models/baselines" in {dep["path"] for dep in lock["deps"]}
    before, saved = contents(scores), settings.read_text()
    monkeypatch.chdir(project)
    assert run_augment({"augment.teacher": "external"}) == 0
    assert "calibration by window" in capsys.readouterr().out
    external = json.loads((scores / "log.json").read_text())["external"]
    assert all(name.startswith("models/baselines/trees/all") for name in external["files"])
    assert run_augment({"augment.external.scale": "probability"}) == STATUS_OF_A_MISTAKE
    wrong = capsys.readouterr().err
    [error] = [line for line in wrong.splitlines() if line.startswith("error: ")]
    assert "is not a probability" in error
    assert "Traceback" not in wrong
    settings.write_text(saved)
    assert run_augment({}) == 0
    assert contents(scores) == before


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
    assert {"baseline", "comparison", "model", "student", "teacher"} <= set(seen["kinds"])
    assert seen["curve"] == 4
    assert seen["digest"] == hashes(project)["data/windows"]
    assert all(0 < p < 1 for p in seen["probabilities"])


def refused(
    project: Path,
    stage: str,
    overrides: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What the stage's command, called here, says of a mistake in its one line; params/ is put
    back. Any other error passes."""
    saved = {path: path.read_bytes() for path in (project / "params").glob("*.yaml")}
    before, data = hashes(project), sorted(path.name for path in (project / "data").rglob("*"))
    monkeypatch.chdir(project)
    flow = getattr(import_module(f"flows.{stage}"), stage)
    options = Namespace(overrides=list(overrides.items()))
    status = exit_status(lambda: run_stage_flow(flow, options))
    for path, content in saved.items():
        path.write_bytes(content)
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == STATUS_OF_A_MISTAKE
    assert len(errors) == 1
    assert "Traceback" not in said
    assert hashes(project) == before
    assert sorted(path.name for path in (project / "data").rglob("*")) == data
    return errors[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.dataset=sinthetic", "did you mean 'synthetic'?"),
        ("data.datset=synthetic", "no such key"),
        ("train.world_size=two", "train.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_loses_nothing(
    project: Path,
    override: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, _, value = override.partition("=")
    stage = "ingest" if override.startswith("data") else "partition"
    assert expected in refused(project, stage, {key: value}, monkeypatch, capsys)
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
    project: Path,
    tmp_path: Path,
    file: str,
    column: str,
    label: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = 1_704_067_200  # 2024-01-01
    rows = [
        f"{start + time},{label if time % 2 else 0},{time % 7},{time / 3}" for time in range(40)
    ]
    (tmp_path / "log.csv").write_text("time,clicked,ad,price\n" + "\n".join(rows) + "\n")
    description = project / "params/datasets/mine.yaml"
    description.write_text(LOG_YAML.format(file=file, column=column))
    overrides = {"data.dataset": "mine", "data.root": str(tmp_path)}
    try:
        assert expected in refused(project, "ingest", overrides, monkeypatch, capsys)
    finally:
        description.unlink()


def test_tables_that_do_not_fit_are_one_line_with_what_would_fit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {"train.memory_gb": "0.0001"}
    assert "memory_gb" in refused(project, "partition", overrides, monkeypatch, capsys)
