"""Records wait on disk as wholes, with copies of their artifacts, and are delivered once and in
order, whoever comes next."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import spool
from tasks.spool import RefusedError, deliver, put, waiting


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def number(content: dict[str, Any], entry: Path) -> int:
    return content["number"]


def test_entries_are_delivered_in_the_order_in_which_they_came_and_once() -> None:
    for one in range(12):
        put({"number": one})
    taken: list[int] = []
    deliver(number, taken.append)
    deliver(number, taken.append)
    assert taken == list(range(12))


def test_an_entry_holds_what_its_files_were_when_it_was_made() -> None:
    Path("note.txt").write_text("first")
    Path("folder/inner").mkdir(parents=True)
    Path("folder/inner/a.txt").write_text("a")
    put({"number": 0}, {"note.txt": "notes", "folder": "", "gone.txt": ""})
    Path("note.txt").write_text("second")
    seen: list[tuple[str, str]] = []

    def read(content: dict[str, Any], entry: Path) -> list[tuple[str, str]]:
        note, folder = content["copies"]
        return [
            ((entry / note[0]).read_text(), note[1]),
            ((entry / folder[0] / "inner/a.txt").read_text(), folder[1]),
        ]

    deliver(read, seen.extend)
    assert seen == [("first", "notes"), ("a", "")]


def test_what_is_not_taken_stays_with_all_that_come_after_it() -> None:
    for one in range(3):
        put({"number": one})
    taken: list[int] = []

    def away_after_one(one: int) -> None:
        if taken:
            raise ConnectionError("no answer")
        taken.append(one)

    with pytest.raises(ConnectionError):
        deliver(number, away_after_one)
    assert len(waiting()) == 2
    deliver(number, taken.append)
    assert taken == [0, 1, 2]


@pytest.mark.parametrize(
    "body", [b"", b'{"number": 1', b"[1]", b'{"colour": 1}', b"\xff\x00", None]
)
def test_a_damaged_entry_is_set_aside_and_those_after_it_go_on(
    body: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = put({"number": 0})
    put({"number": 1})
    if body is None:
        (damaged / spool.RECORD_FILE).unlink()
    else:
        (damaged / spool.RECORD_FILE).write_bytes(body)
    taken: list[int] = []
    deliver(number, taken.append)
    assert taken == [1]
    assert Path(f"{damaged}.damaged").is_dir()
    (warning,) = [one.message for one in caplog.records]
    assert warning.startswith(f"{damaged}.damaged is damaged (")


def test_a_refused_entry_is_set_aside_and_those_after_it_go_on() -> None:
    refused = put({"number": 0})
    put({"number": 1})
    taken: list[int] = []

    def refuse_the_first(one: int) -> None:
        if one == 0:
            raise RefusedError("no such metric")
        taken.append(one)

    deliver(number, refuse_the_first)
    assert taken == [1]
    assert Path(f"{refused}.refused").is_dir()


def test_of_several_that_deliver_at_once_each_entry_is_taken_by_one() -> None:
    taken: list[int] = []

    def add_and_deliver(first: int) -> None:
        for one in range(first, first + 10):
            put({"number": one})
            deliver(number, taken.append)

    threads = [threading.Thread(target=add_and_deliver, args=(100 * place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [100 * place + one for place in range(4) for one in range(10)]
    assert not waiting()


def test_half_of_an_entry_that_a_killed_process_has_left_is_removed() -> None:
    put({"number": 0})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    half = spool.SPOOL / f"{1:020d}-{'a' * 32}.{ended.pid}.partial"
    half.mkdir()
    own = spool.SPOOL / f"{2:020d}-{'b' * 32}.{os.getpid()}.partial"
    own.mkdir()
    deliver(number, lambda one: None)
    assert not half.exists()
    assert own.exists()


def test_a_run_is_lost_when_its_process_is_gone_or_another_has_its_number() -> None:
    spool.open_run("mine")
    this = psutil.Process()
    for name, owner in (
        ("gone", {"process": 2**22 + 1, "started": this.create_time()}),
        ("another", {"process": this.pid, "started": this.create_time() - 100}),
    ):
        (spool.SPOOL / spool.OPEN_DIR / name).write_text(json.dumps(owner))
    assert spool.lost_runs() == ["another", "gone"]
    spool.close_run("gone")
    assert spool.lost_runs() == ["another"]
