"""``towerflow``: every subcommand is listed, helps at once, and says in one line what is wrong."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from flows.towerflow import COMMANDS, main
from tests.support.projects import ROOT, environment

NAMES = [command.name for commands in COMMANDS.values() for command in commands]
SLOW_TO_IMPORT = {"torch", "prefect", "polars", "mlflow", "pydantic"}
MODEL = ROOT / "params/models/dlrm_criteo.yaml"
PLAN = {"batch_size": 64, "table_optimizer": "adagrad"}
PLAN_TABLES = [{"name": "shop", "rows": 10_000, "dimension": 64}]


def python(code: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def helped(code: str, *arguments: str) -> tuple[str, set[str]]:
    """What ``code`` prints until it exits with status 0, and what it has imported."""
    listing = "import sys\ntry:\n    {}\nexcept SystemExit as end:\n    assert end.code == 0\n{}"
    told = "print('---', *(name for name in sys.modules if '.' not in name))"
    result = python(listing.format(code, told), *arguments)
    assert result.returncode == 0, result.stderr
    text, _, modules = result.stdout.partition("---")
    return text, set(modules.split())


def test_help_has_a_line_for_each_subcommand_in_the_order_in_which_a_person_meets_them() -> None:
    text, imported = helped("from flows.towerflow import main; main()", "--help")
    first_words = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert first_words == [
        "run",
        *("ingest", "baselines", "partition", "teacher", "augment", "students"),
        *("evaluate", "register", "compare", "serve", "score"),
        *("stream", "snapshots", "describe", "crosses", "tune", "plan", "advise", "calibrate"),
        *("deployments", "ui"),
        "-h,",
        "--version",
    ]
    assert not imported & SLOW_TO_IMPORT


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_subcommand_imports_nothing_slow(name: str) -> None:
    text, imported = helped("from flows.towerflow import main; main()", name, "--help")
    assert text.startswith(f"usage: towerflow {name} ")
    assert not imported & SLOW_TO_IMPORT


@pytest.mark.parametrize(
    "module", ["pipeline", "stream", "serve", "deployments", "snapshots", "ui"]
)
def test_help_of_a_module_imports_nothing_slow(module: str) -> None:
    code = f"import runpy; runpy.run_module('flows.{module}', run_name='__main__')"
    text, imported = helped(code, "--help")
    assert text.startswith("usage: ")
    assert not imported & SLOW_TO_IMPORT


def test_what_is_there_at_the_end_is_not_looked_through_for_garbage() -> None:
    """With torch that would take seconds."""
    script = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
    command = [sys.executable, "-c", f"{script}import flows"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_the_installed_program_is_this_one() -> None:
    assert 'towerflow = "flows.towerflow:main"' in (ROOT / "pyproject.toml").read_text()


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"towerflow {stated}\n"


def test_no_subcommand_shows_the_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "ingest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [("ingset", "did you mean 'ingest'?"), ("zzz", "there are: run, ingest, ")],
)
def test_an_unknown_subcommand_is_one_line_with_what_is_near(
    given: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {given}: no such command; {hint}")
    assert error.count("\n") == 1


def test_a_wrong_option_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["ingest", "--sett", "data.dataset"])
    assert exit_info.value.code == 2
    assert "towerflow ingest: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [name, *{"compare": ["a", "b"], "snapshots": ["list"], "ui": ["mlflow"]}.get(name, [])]
        for name in NAMES
        if name not in ("plan", "advise", "describe", "serve", "score")
    ],
    ids=" ".join,
)
def test_outside_the_project_it_is_one_line_and_nothing_is_written(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    wrong = "there is no folder params here; start towerflow in the project's root"
    assert capsys.readouterr().err == f"error: {tmp_path}: {wrong}\n"
    assert not list(tmp_path.iterdir())


def test_plan_and_advise_need_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(PLAN | {"tables": PLAN_TABLES}))
    hardware = str(ROOT / "params/hardware/a100_zionex.yaml")
    assert main(["plan", "small.yaml", "--gpus", "2", "--hardware", hardware]) == 0
    assert "shop" in capsys.readouterr().out
    cluster = str(ROOT / "params/clusters/h100.yaml")
    assert main(["advise", str(MODEL), "--cluster", cluster, "--hosts", "2"]) == 0
    assert "advice: " in capsys.readouterr().out


def test_in_the_project_plan_finds_the_hardware_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    model = tmp_path / "small.yaml"
    model.write_text(yaml.safe_dump(PLAN | {"tables": PLAN_TABLES}))
    assert main(["plan", str(model), "--hardware", "a100_zionx"]) == 2
    assert "did you mean 'a100_zionex'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("door", [["-m", "flows.towerflow", "ingest"], ["-m", "flows.ingest"]])
def test_a_stage_by_either_door_writes_the_override_and_refuses_it_in_one_line(
    door: list[str], tmp_path: Path
) -> None:
    (tmp_path / "params").mkdir()
    settings = (ROOT / "params/data.yaml").read_text()
    (tmp_path / "params/data.yaml").write_text(settings)
    result = subprocess.run(
        [sys.executable, *door, "--set", "data.dataset=sinthetic"],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2
    assert len(errors) == 1
    assert "params/datasets/sinthetic.yaml" in errors[0]
    assert "Traceback" not in result.stderr
