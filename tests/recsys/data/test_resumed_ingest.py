"""A killed ingest goes on where it was, and the result is the same; a grown log touches no old
window."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.runs import SortedRuns
from tests.support.files import contents
from tests.support.raw_logs import SHUFFLED_SECTION

START_S, FILES, ROWS = 1_704_067_200, 4, 500
SMALL = 6e-4  # of memory, in GiB: about ten blocks
SECTION = SHUFFLED_SECTION | {"files": ["log-*.csv"]}


def write_log(root: Path, file_format: str = "csv", labels: tuple[int, int] = (0, 1)) -> None:
    """Four files of 500 rows in no order, a few of them bad."""
    for index in range(FILES):
        rows = pl.int_range(ROWS, eager=True) + index * ROWS
        frame = pl.DataFrame(
            {
                "ts": START_S + rows * 7919 % (3 * 86_400),
                "y": pl.Series([labels[int(one % 3 == 0)] for one in rows]),
                "user": rows * 31 % 97,
                "ad": rows * 17 % 23,
                "price": pl.Series([None if one % 11 == 0 else one / 7 for one in rows]),
            }
        )
        if index == FILES - 1:  # a label's first 0 comes late
            late = pl.when(pl.col("ts") % 5 == 0).then(labels[0]).otherwise("y")
            frame = frame.with_columns(y=late)
        bad = pl.when(pl.int_range(pl.len()) == 3).then(7).otherwise("y").alias("y")
        getattr(frame.with_columns(bad), f"write_{file_format}")(
            root / f"log-{index}.{file_format}"
        )


def described(file_format: str = "csv") -> DatasetSettings:
    section = SECTION | {"files": [f"log-*.{file_format}"], "file_format": file_format}
    return DatasetSettings.model_validate({"format": "table", "table": section})


def settings_of(data: DataSettings, root: Path, tasks: int = 1) -> DataSettings:
    small = {"memory_gb": SMALL * tasks, "rows_per_part": 300}
    return data.model_copy(
        update=small | {"root": str(root), "dataset": "log", "parallel_tasks": tasks}
    )


class Stopped(BaseException):
    """As KeyboardInterrupt, which pytest would take for the user's."""


def stop_after(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add, done = SortedRuns.add, iter(range(1, 1_000))

    def counted(self: SortedRuns, frame: pl.DataFrame) -> None:
        add(self, frame)
        if next(done) == runs:
            raise Stopped

    monkeypatch.setattr(SortedRuns, "add", counted)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(
    ("file_format", "runs"), [("csv", 1), ("csv", 5), ("parquet", 2), ("parquet", 4)]
)
def test_a_stopped_ingest_goes_on_and_gives_the_same_bytes(
    data_settings: DataSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file_format: str,
    runs: int,
    tasks: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_log(tmp_path, file_format)
    settings, dataset = settings_of(data_settings, tmp_path, tasks), described(file_format)
    ingest(settings_of(data_settings, tmp_path), dataset, tmp_path / "whole", tmp_path / "oracle")
    windows, work = tmp_path / "windows", tmp_path / "work"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(runs, patch)
        ingest(settings, dataset, windows, tmp_path / "oracle", work)
    assert not windows.exists() and work.is_dir()
    capsys.readouterr()
    ingest(settings, dataset, windows, tmp_path / "oracle", work)
    assert ("resumes after" in capsys.readouterr().err) == (runs > 1)
    assert contents(windows) == contents(tmp_path / "whole")
    assert not work.exists()


@pytest.mark.parametrize("tasks", [1, 3])
def test_files_that_were_read_are_not_read_again(
    data_settings: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    write_log(tmp_path)
    settings, dataset = settings_of(data_settings, tmp_path, tasks), described()
    ingest(settings, dataset, tmp_path / "whole", tmp_path / "oracle")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(5, patch)
        ingest(settings, dataset, tmp_path / "windows", tmp_path / "oracle", tmp_path / "work")
    first = tmp_path / "log-0.csv"
    header, _, rest = first.read_bytes().partition(b"\n")
    state = first.stat()
    first.write_bytes(header + b"\n" + b"?" * len(rest))  # nobody can read this
    os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns))
    ingest(settings, dataset, tmp_path / "windows", tmp_path / "oracle", tmp_path / "work")
    assert contents(tmp_path / "windows") == contents(tmp_path / "whole")


def test_a_changed_log_is_read_from_its_start(
    data_settings: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path)
    settings, dataset = settings_of(data_settings, tmp_path), described()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(5, patch)
        ingest(settings, dataset, tmp_path / "windows", tmp_path / "oracle", tmp_path / "work")
    pl.read_csv(tmp_path / "log-0.csv").head(100).write_csv(tmp_path / "log-0.csv")
    ingest(settings, dataset, tmp_path / "windows", tmp_path / "oracle", tmp_path / "work")
    ingest(settings, dataset, tmp_path / "whole", tmp_path / "oracle")
    assert contents(tmp_path / "windows") == contents(tmp_path / "whole")


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_label_of_minus_one_and_a_late_zero_survive_a_stop(
    data_settings: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    write_log(tmp_path, labels=(-1, 1))
    late = pl.read_csv(tmp_path / "log-3.csv").with_columns(y=pl.lit(0))
    late.write_csv(tmp_path / "log-3.csv")
    settings = settings_of(data_settings, tmp_path, tasks).model_copy(
        update={"quarantine_limit": 1.0}
    )
    ingest(settings, described(), tmp_path / "whole", tmp_path / "oracle")
    for runs in (3, 3, 2):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(runs, patch)
            ingest(settings, described(), tmp_path / "out", tmp_path / "oracle", tmp_path / "work")
    ingest(settings, described(), tmp_path / "out", tmp_path / "oracle", tmp_path / "work")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_wrong_log_leaves_nothing_to_go_on_from(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    write_log(tmp_path)
    settings = settings_of(data_settings, tmp_path).model_copy(update={"quarantine_limit": 0.0})
    with pytest.raises(InputError, match="4 of 2,000 rows are bad"):
        ingest(settings, described(), tmp_path / "out", tmp_path / "oracle", tmp_path / "work")
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.runs import SortedRuns
from recsys.data.ingest import ingest
add, done = SortedRuns.add, iter(range(1, 1_000))
def counted(self, frame):
    add(self, frame)
    if next(done) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
SortedRuns.add = counted
root = Path(sys.argv[1])
def at_once(read, shares, done):
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(read, shares))
ingest(
    DataSettings.model_validate_json(sys.argv[2]),
    DatasetSettings.model_validate_json(sys.argv[3]),
    root / "killed", root / "oracle", root / "work", at_once,
)
"""


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_killed_process_leaves_what_the_next_one_goes_on_from(
    data_settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], tasks: int
) -> None:
    write_log(tmp_path)
    settings, dataset = settings_of(data_settings, tmp_path, tasks), described()
    given = [
        str(tmp_path),
        settings.model_dump_json(),
        dataset.model_dump_json(exclude_defaults=True),
    ]
    killed = subprocess.run([sys.executable, "-c", KILLED, *given], check=False)
    assert killed.returncode == -signal.SIGKILL
    ingest(settings, dataset, tmp_path / "out", tmp_path / "oracle", tmp_path / "work")
    assert "resumes after" in capsys.readouterr().err
    ingest(settings, dataset, tmp_path / "whole", tmp_path / "oracle")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_new_files_add_windows_and_touch_no_old_one(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    days = [
        pl.DataFrame(
            {
                "ts": START_S + 86_400 * day + pl.int_range(0, 400, eager=True) * 200,
                "y": pl.int_range(0, 400, eager=True) % 4 // 3,
                "user": pl.int_range(0, 400, eager=True) * (day + 3) % 90,
                "ad": pl.int_range(0, 400, eager=True) % 11,
                "price": pl.int_range(0, 400, eager=True) / 7,
            }
        )
        for day in range(3)
    ]
    section = SECTION | {
        "categorical": [
            {"column": "user", "table_rows": 500},
            {"column": "ad", "table_rows": 50, "encoding": {"kind": "vocabulary"}},
        ]
    }
    dataset = DatasetSettings.model_validate({"format": "table", "table": section})
    settings = settings_of(data_settings, tmp_path)
    for day, frame in enumerate(days):
        frame.write_csv(tmp_path / f"log-{day}.csv")
        if day > 0:
            ingest(settings, dataset, tmp_path / f"after-{day}", tmp_path / "oracle")
    before, after = (contents(tmp_path / f"after-{day}") for day in (1, 2))
    old = [name for name in before if "/part-" in name]
    assert len(old) == 4 and {name: after[name] for name in old} == {n: before[n] for n in old}
    assert len([name for name in after if "/part-" in name]) == 6
