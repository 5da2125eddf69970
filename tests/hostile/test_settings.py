"""Hostile settings at three doors, ``--set``, a file edited by hand and the environment: what holds
goes on, what does not is one short line that names the file as the person knows it, and nothing is
written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.command_line import STATUS_OF_A_MISTAKE, apply_overrides, exit_status
from recsys import scratch
from tasks.checks import check_settings
from tests.support.files import contents

PARAMS = Path(__file__).parents[2] / "params"
LONGEST_LINE = 600


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/ in the current folder."""
    shutil.copytree(PARAMS, tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(command: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that ``command`` ends with."""
    status = exit_status(command)
    said = capsys.readouterr().err
    assert status == STATUS_OF_A_MISTAKE
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert len(said) < LONGEST_LINE
    return said


# file.key, value
SET = [
    *(
        ("data.dataset", value)
        for value in (
            "[1",
            "../data",
            "/etc/passwd",
            "a/b",
            "",
            "null",
            "{}",
            "x" * 5000,
            "..",
            "é",
        )
    ),
    *(
        ("data.window_hours", value)
        for value in (".inf", "-.inf", ".nan", "1e400", "1e-9", "0", "-1", "1h", "[]", "true x")
    ),
    *(("data.max_windows", value) for value in ("0", "-1", "1.5", "1e3x", "[1]")),
    *(("data.root", value) for value in ("[a]", "{a: 1}", "3")),
    *(("data.rows_per_part", value) for value in ("0", "-5", "many")),
    *(("data.drift.base_rate", value) for value in ("-1", "x", "[3]")),
    *(("data.drift.bsae_rate", value) for value in ("3",)),
    *(("students.seeds", value) for value in ("[]", f"[{2**64}]", "[-1]", "1", "[a]", "[1, 1]")),
    *(
        ("students.students", value)
        for value in (
            "[]",
            "[{name: size.json, domain: feed}]",
            "[{name: ../x, domain: feed}]",
            "[{name: a/b, domain: feed}]",
            "[{name: '', domain: feed}]",
            "[{name: a, domain: feed}, {name: a, domain: video}]",
            "[{domain: feed}]",
            "feed",
        )
    ),
    *(
        ("students.arms", value)
        for value in ("{}", "{plain: {mode: x}}", "{'../x': {}}", "[plain]", "{plain: 3}")
    ),
    *(("students.distillation.mode", value) for value in ("os:system", "3", "[shared]")),
    *(("teacher.seed", value) for value in (str(2**64), "-1", "x", "1.5")),
    *(("teacher.model.dense_layers", value) for value in ("[0]", "[-1]", "[a]", "64", "[1.5]")),
    *(("teacher.model.architecture", value) for value in ("gpt", "os:system")),
    *(
        ("towers.module.kind", value)
        for value in ("os:system", "../x:Y", "a.b:C", ":", "subprocess:Popen")
    ),
    *(("towers.partition.towers", value) for value in ("0", "-1", "2.5", "two")),
    *(("train.world_size", value) for value in ("0", "-2", "two", "1.5", "[2]")),
    *(("train.memory_gb", value) for value in (".inf", "-1", "0", ".nan", "4GB")),
    *(("train.table_learning_rate", value) for value in (".nan", "-0.1", "fast")),
    *(("train.dense_optimizer", value) for value in ("os:system", "NoSuch", "[Adam]")),
    *(("train.device", value) for value in ("tpu", "cuda:0", "3")),
    *(("evaluate.confidence", value) for value in ("0", "1", "95", ".nan", "high")),
    *(("evaluate.bootstrap_samples", value) for value in ("0", "-1", "1e9x")),
    *(("augment.staleness_bins_hours", value) for value in ("[.nan]", "[2, 1]", "[a]", "3")),
    *(("augment.teacher", value) for value in ("mine", "[own]")),
    *(("stream.poll_seconds", value) for value in ("0", "-1", ".inf", "soon")),
    *(("tracking.wait_seconds", value) for value in ("-1", ".nan", "long")),
    *(("baselines.run", value) for value in ("[gpt]", "trees", "[1]")),
    *(("baselines.trees.bins", value) for value in ("[.nan]", "0", "-3")),
    ("nothing.key", "1"),
    ("data", "1"),
    ("data.", "1"),
    (".dataset", "1"),
    ("../params/data.dataset", "x"),
    ("data.dataset.x", "1"),
    ("students.students.9.name", "a"),
    ("datasets.synthetic.synthetic.rows", "-1"),
    ("datasets.nosuch.format", "table"),
    ("train.nodes", "{count: 2}"),
]


@pytest.mark.parametrize(("key", "value"), SET, ids=[f"{key}={value[:30]}" for key, value in SET])
def test_a_hostile_value_is_one_line_and_nothing_is_written(
    key: str, value: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(project / "params")

    def command() -> None:
        apply_overrides({key: value})
        check_settings()

    refused(command, capsys)
    assert contents(project / "params") == before


DEEP = b"a: " + b"[" * 3000 + b"]" * 3000
# name in params/, its bytes
WRITTEN_BY_HAND = [
    *(
        (name, body)
        for name in ("data.yaml", "train.yaml", "students.yaml", "datasets/synthetic.yaml")
        for body in (
            b"a: [",
            b"\xff\xfea\x00:\x00",
            "dataset: caf\xe9".encode("latin-1"),
            "dataset: x".encode("utf-16"),
            DEEP,
            b"- 1\n- 2\n",
            b"3\n",
            b"\x00\x01\x02",
            b"a: !!python/object/apply:os.system [true]\n",
            b"a: &a [*a]\n",
            b"a: 1\na: 2\n",
            b"\tdataset: x\n",
            b"{" * 50,
        )
    ),
    ("datasets/synthetic.yaml", b"format: table\ntable: {files: []}\n"),
    ("datasets/synthetic.yaml", b"format: nosuch\n"),
    ("datasets/synthetic.yaml", b"format: [table]\n"),
    ("datasets/synthetic.yaml", b""),
]


@pytest.mark.parametrize(("name", "body"), WRITTEN_BY_HAND)
def test_a_hostile_file_is_one_line_that_names_it(
    name: str, body: bytes, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "params" / name).write_bytes(body)
    assert f"params/{name}" in refused(check_settings, capsys)


@pytest.mark.parametrize("name", ["data.yaml", "towers.yaml", "datasets/synthetic.yaml"])
@pytest.mark.parametrize("kind", ["gone", "a folder", "a dangling link"])
def test_a_file_that_is_none_is_named(
    kind: str, name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "params" / name
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a dangling link":
        path.symlink_to("nowhere")
    assert f"params/{name}" in refused(check_settings, capsys)


@settings(
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    key=st.sampled_from(sorted({key for key, _ in SET})),
    value=st.one_of(
        st.text(max_size=30),
        st.integers().map(str),
        st.floats().map(str),
        st.lists(st.integers(), max_size=3).map(str),
        st.dictionaries(st.text("abc", min_size=1), st.integers(), max_size=2).map(str),
    ),
)
def test_any_value_holds_or_is_one_line(
    key: str, value: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = contents(project / "params")
    capsys.readouterr()

    def command() -> None:
        apply_overrides({key: value})
        check_settings()

    if exit_status(command) == 0:
        for name, body in saved.items():
            (project / "params" / name).write_bytes(body)
    else:
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert contents(project / "params") == saved


@pytest.mark.parametrize("kind", ["a file", "missing"])
def test_a_tmpdir_that_is_none_is_passed_over_or_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    if kind == "a file":
        folder.write_text("")
    monkeypatch.setenv("TMPDIR", str(folder))
    assert os.access(scratch.scratch(), os.W_OK)
