"""``towerflow tune`` in a project: params/ with its comments, the report, MLflow, mistakes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.towerflow import main
from recsys.config import load_settings
from recsys.training.settings import TrainSettings
from tasks.overrides import apply_overrides
from tasks.project import TUNE_REPORT
from tasks.tracking import connect
from tests.support.mlflow_stores import wait_until_delivered
from tests.support.toy_stream import write_windows

PARAMS = Path(__file__).parents[2] / "params"
pytestmark = pytest.mark.ranks  # it trains students
RATE = "train.table_learning_rate"
SPACE = {
    RATE: {"low": 0.01, "high": 1.0, "log": True},
    "students.model.over_layers": {"choices": [[8], [16, 8]]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the windows of the toy stream, whose tables hardly learn."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(PARAMS, folder / "params")
    write_windows(_made(folder / "data/windows"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        apply_overrides(
            {
                RATE: "1e-6",
                "train.global_batch_size": "64",
                "evaluate.first_evaluation_window": "3",
                "students.auto_windows": "3",
                "students.table_learning_rate": "null",
                "teacher.rate_auto_windows": "3",
                "students.model.embedding_dimension": "4",
                "students.model.over_layers": "[8]",
                "students.model.dense_layers": "[8]",
                "students.students": "[{name: one, domain: a}, {name: two, domain: b}]",
                "tune.spaces": yaml.safe_dump(
                    {"model": SPACE, "wrong": {"train.rate": SPACE[RATE]}}
                ),
                "tune.seeds": "2",
                "tune.workers": "1",
            }
        )
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project, in which the test runs."""
    folder = Path(shutil.copytree(project, tmp_path / "project"))
    monkeypatch.chdir(folder)
    yield folder


def params_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "params").glob("*.yaml")}


def test_it_mends_a_bad_default_and_keeps_all_else(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = params_of(copy)
    assert main(["tune", "--trials", "4", "--dry-run"]) == 0
    assert params_of(copy) == before
    first = TUNE_REPORT.read_text()
    assert main(["tune", "--trials", "4"]) == 0  # the same study: nothing is trained again
    assert TUNE_REPORT.read_text() == first
    after = params_of(copy)
    assert [name for name in after if after[name] != before[name]] == ["train.yaml"]
    rate = load_settings(Path("params/train.yaml"), TrainSettings).table_learning_rate
    assert rate >= 0.01
    changed = [
        (old, new)
        for old, new in zip(
            before["train.yaml"].splitlines(), after["train.yaml"].splitlines(), strict=True
        )
        if old != new
    ]
    [(old, new)] = [[line.split("#") for line in both] for both in changed]
    assert (old[0].strip(), new[0].strip()) == (
        "table_learning_rate: 1e-6",
        f"table_learning_rate: {rate}",
    )
    assert old[1] == new[1]  # the comment
    printed = capsys.readouterr().out
    assert "git diff params" in printed
    assert f"| {RATE} | 1e-06 | {rate} |" in first
    check_runs(trials=4)


def check_runs(trials: int) -> None:
    """One MLflow run for the study, with the report, and one under it for each trial."""
    wait_until_delivered(Path())
    mlflow, experiment_id = connect()
    client = mlflow.MlflowClient()
    runs = client.search_runs([experiment_id], "tags.kind = 'tune'")
    [study] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    under = [run for run in runs if run is not study]
    assert len(under) == trials
    assert {run.data.tags["mlflow.parentRunId"] for run in under} == {study.info.run_id}
    assert study.data.metrics["ne_after"] < study.data.metrics["ne_before"]
    assert [file.path for file in client.list_artifacts(study.info.run_id)] == ["tune.md"]
    [present] = [run for run in under if run.data.params[RATE] == "1e-06"]
    assert present.data.tags["state"] == "complete"
    assert len(client.get_metric_history(present.info.run_id, "window/ne_one")) == 2


def test_without_mlflow_it_tunes_all_the_same(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_overrides({"tracking.uri": "http://127.0.0.1:1"})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["tune", "--trials", "2"]) == 0
    assert TUNE_REPORT.is_file()
    assert len(list(Path(".tracking").glob("*/record.json"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what", "modl"], "params/tune.yaml: key 'spaces.modl': did you mean 'model'?"),
        (["--what", "wrong"], "params/tune.yaml: key 'spaces.wrong': 'train.rate': no such key"),
        (["--what", "model", "wrong"], "key 'spaces.wrong': 'train.rate': no such key"),
    ],
)
def test_a_mistake_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not Path(".work").exists()


def test_what_must_be_there_first_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apply_overrides(
        {"tune.spaces.scored": "{students.distillation.loss_weight: {low: 0.1, high: 1.0}}"}
    )
    assert main(["tune", "--what", "scored"]) == 2
    assert "error: data/scores: no such file or folder; run the stages" in capsys.readouterr().err
    apply_overrides(
        {
            "towers.partition.probe_windows": "1",
            "evaluate.first_evaluation_window": "1",
            "teacher.table_learning_rate": "0.1",
            "students.distillation.rows": "own",
        }
    )
    assert main(["tune"]) == 2
    assert "key 'first_evaluation_window': tuning trains on" in capsys.readouterr().err
    shutil.rmtree("data")
    assert main(["tune"]) == 2
    assert "error: data/windows: no such file or folder; run the stages" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--trials", "x"], ["--workers", "0"]])
def test_a_budget_is_above_0(arguments: list[str], copy: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["tune", *arguments])
    assert end.value.code == 2
