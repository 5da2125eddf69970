"""Damage to any kind of file that a stage reads: the stage says so in one line, and learns nothing
from it."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from flows.command_line import (
    STATUS_OF_A_MISTAKE,
    apply_overrides,
    exit_status,
    run_stage_flow,
)
from flows.pipeline import STAGES
from recsys.files import folder_state
from tasks.tracking import by_courier
from tests.support.files import flip_a_bit
from tests.support.projects import copy_project
from tests.support.stages import run_stages

SETTINGS = {
    "data.max_windows": "4",
    "baselines.run": "[logistic]",
    "augment.teacher": "own",
    "train.world_size": "1",
    "train.global_batch_size": "512",
    "teacher.model.dense_layers": "[16]",
    "teacher.model.over_layers": "[16]",
    "students.seeds": "[1]",
    "towers.partition.probe_windows": "2",
    "teacher.table_learning_rate": "null",
    "students.table_learning_rate": "null",
    "students.distillation.rows": "own",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "20",
}
ROWS_LINE, FEWER_ROWS = "rows: 240000", "rows: 12000"
FIRST, SECOND, LAST = (f"2024-01-0{day}T00-00" for day in (2, 3, 4))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project all of whose stages have run."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    description = folder / "params/datasets/synthetic.yaml"
    description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
    with pytest.MonkeyPatch.context() as within:
        within.chdir(folder)
        apply_overrides(SETTINGS)
        run_stages(*STAGES)
    return folder


@pytest.fixture
def project(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished project, in which the test runs."""
    monkeypatch.chdir(finished)
    return finished


def delete(path: Path, _: Path) -> None:
    path.unlink()


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, _: Path) -> None:
    flip_a_bit(path)


def replace(path: Path, other: Path) -> None:
    """By another window's, arm's or snapshot's file of the same kind."""
    shutil.copyfile(other, path)


def swap(path: Path, other: Path) -> None:
    body, of_other = path.read_bytes(), other.read_bytes()
    path.write_bytes(of_other)
    other.write_bytes(body)


DAMAGES = (delete, truncate, empty, flip, replace, swap)
OF_ONE_FILE = (delete, truncate, empty, flip)
# Each kind of file: the stages that read it (the first meets all damages), the file, another of its
# kind, the stage that makes it
WINDOWS, TEACHER, STUDENT = "data/windows", "models/teacher/snapshots", "models/students/feed"
FILES: list[tuple[tuple[str, ...], str, str | None, str]] = [
    (
        ("baselines", "partition", "teacher", "augment", "students", "evaluate", "register"),
        f"{WINDOWS}/{FIRST}/part-00000.parquet",
        f"{WINDOWS}/{SECOND}/part-00000.parquet",
        "ingest",
    ),
    (("baselines", "students"), f"{WINDOWS}/schema.json", None, "ingest"),
    (("teacher",), f"{WINDOWS}/{FIRST}/manifest.json", f"{WINDOWS}/{LAST}/manifest.json", "ingest"),
    (("evaluate",), f"data/oracle/{SECOND}.parquet", f"data/oracle/{LAST}.parquet", "ingest"),
    (
        ("evaluate",),
        f"models/baselines/logistic/own/predictions/{LAST}.parquet",
        f"models/baselines/logistic/all/predictions/{LAST}.parquet",
        "baselines",
    ),
    (("teacher", "augment"), "models/partition/partition.json", None, "partition"),
    (
        ("augment", "evaluate"),
        f"{TEACHER}/{FIRST}/snapshot.json",
        f"{TEACHER}/{SECOND}/snapshot.json",
        "teacher",
    ),
    (
        ("augment",),
        f"{TEACHER}/{FIRST}/weights/__0_0.distcp",
        f"{TEACHER}/{SECOND}/weights/__0_0.distcp",
        "teacher",
    ),
    (
        ("augment",),
        f"{TEACHER}/{FIRST}/weights/manifest.json",
        f"{TEACHER}/{SECOND}/weights/manifest.json",
        "teacher",
    ),
    (("augment", "evaluate"), "models/teacher/plan.json", None, "teacher"),
    (
        ("evaluate",),
        f"models/teacher/predictions/{SECOND}.parquet",
        f"models/teacher/predictions/{LAST}.parquet",
        "teacher",
    ),
    (
        ("students", "evaluate"),
        f"data/scores/{SECOND}/segment-00000.parquet",
        f"data/scores/{LAST}/segment-00000.parquet",
        "augment",
    ),
    (
        ("students",),
        f"data/scores/{SECOND}/window.json",
        f"data/scores/{LAST}/window.json",
        "augment",
    ),
    (("students",), "data/scores/log.json", None, "augment"),
    (
        ("evaluate",),
        f"{STUDENT}/plain/seed-1/predictions/{LAST}.parquet",
        f"{STUDENT}/distilled/seed-1/predictions/{LAST}.parquet",
        "students",
    ),
    (
        ("register",),
        f"{STUDENT}/plain/export/weights.safetensors",
        f"{STUDENT}/distilled/export/weights.safetensors",
        "students",
    ),
    (
        ("register",),
        f"{STUDENT}/plain/export/model.json",
        "models/students/video/plain/export/model.json",
        "students",
    ),
    (("register",), "reports/evaluation/report.json", None, "evaluate"),
    (("register",), "models/students/sums.json", None, "students"),
]
CASES = [
    pytest.param(stage, name, other, maker, damage, id=f"{damage.__name__}-{name}-{stage}")
    for readers, name, other, maker in FILES
    for place, stage in enumerate(readers)
    for damage in ((flip,) if place else DAMAGES if other is not None else OF_ONE_FILE)
    # Without its sums nothing is known of a folder, as of one made by hand
    if (damage, Path(name).name) != (delete, "sums.json")
]


@pytest.mark.parametrize(("stage", "name", "other", "maker", "damage"), CASES)
def test_damage_is_one_line_that_names_the_file_and_what_rebuilds_it(
    stage: str,
    name: str,
    other: str | None,
    maker: str,
    damage: Callable[[Path, Path], None],
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [project / one for one in (name, other) if one is not None]
    saved = {path: path.read_bytes() for path in paths}
    try:
        damage(paths[0], paths[-1])
        before = state(project)
        flow = getattr(import_module(f"flows.{stage}"), stage)
        with by_courier():  # one process per case would outlive it
            status = exit_status(lambda: run_stage_flow(flow, Namespace(overrides=[])))
        assert state(project) == before
    finally:
        for path, body in saved.items():
            path.write_bytes(body)
    said = capsys.readouterr().err
    assert status == STATUS_OF_A_MISTAKE
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    # One file of a swapped pair is as wrong as the other; a flipped list of hashes accuses its file
    named = [one for one in (name, other) if one is not None and one in said]
    assert named or name.endswith("sums.json"), said
    assert said.rstrip().endswith(f"rebuild it with towerflow {maker}")


def state(project: Path) -> list[list[tuple[str, int, int]]]:
    """What stages write, at a glance."""
    return [folder_state(project / name) for name in ("data", "models", "reports")]


def test_the_batch_stages_take_what_is_not_damaged(project: Path) -> None:
    """The table's project is whole: what is refused in it is the damage."""
    from tasks.project import MADE_BY, STREAM, require

    folders = [folder for folder in MADE_BY if folder != STREAM]
    require(*folders)
    assert all((folder / "sums.json").is_file() for folder in folders)


@pytest.mark.parametrize("body", [b"stages: [", b"\xff\xfe\x00", b"3", b"stages: 3"])
def test_a_damaged_dvc_lock_is_one_line_at_both_doors(
    body: bytes, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.versioning import output_version, settled_stages

    lock = project / "dvc.lock"
    saved = lock.read_bytes()
    lock.write_bytes(body)
    try:
        statuses = [
            exit_status(settled_stages),
            exit_status(lambda: output_version(Path("data/windows"))),
        ]
    finally:
        lock.write_bytes(saved)
    lines = capsys.readouterr().err.splitlines()
    assert statuses == [STATUS_OF_A_MISTAKE] * 2
    assert len(lines) == 2
    assert all("dvc.lock" in line for line in lines)
