"""Whether a stream of 10^5 to 10^7 examples in 100 windows runs through in bounded memory, and how
fast.

    python -m bench.serving.stream --rows 100000 1000000          # a few minutes on two cores
    python -m bench.serving.stream --rows 10000000 --seconds 200  # again until the stream has ended
    python -m bench.serving.stream --rows 10000000 --write        # the report, of all in --work
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from bench.shared.report import machine_lines, print_report
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, load_dataset
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.online_stream import (
    BEGUN,
    DONE_FILE,
    SCORES_DIR,
    STUDENTS_DIR,
    TEACHER_DIR,
    WINDOWS_DIR,
    StreamJob,
    advance,
)
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.evaluation.online_report import evaluate_windows
from tasks.teacher_settings import load_teacher

PARAMS, REPORT, WORK = Path("params"), Path("docs/benchmarks/stream.md"), Path(".work/bench-stream")
WINDOWS = 100
INGESTED_FILE, CALLS_FILE = "ingested.json", "calls.jsonl"
LAUNCHES = (TEACHER_DIR, SCORES_DIR, STUDENTS_DIR)
SAMPLE_SECONDS = 0.2
MEBI, KIBI = 1024, 1024
MAIN = "main"


@dataclass(frozen=True)
class Call:
    """One call of :func:`advance` with the evaluation of its windows; ``peaks`` in MiB, the largest
    rank's each."""

    windows: int
    new: int
    rows: int
    seconds: float
    peaks: dict[str, float]


class PeakSampler(threading.Thread):
    """Peak resident memory of the ranks that this process starts, by launch, as Linux keeps it for
    each process."""

    def __init__(self, work_dir: Path) -> None:
        super().__init__(daemon=True)
        self._work_dir, self._stopped = work_dir, threading.Event()
        self._launch_of: dict[int, str] = {}  # by process id
        self._peaks: dict[str, float] = {}  # MiB by launch

    def run(self) -> None:
        """Look at all ranks until :meth:`peaks` is called."""
        while not self._stopped.wait(SAMPLE_SECONDS):
            for server in psutil.Process().children():
                for rank in _children(server):
                    peak = _peak_mib(rank.pid)
                    if peak is not None:
                        launch = self._launch_of.setdefault(
                            rank.pid, launch_under_way(self._work_dir)
                        )
                        self._peaks[launch] = max(peak, self._peaks.get(launch, 0.0))

    def peaks(self) -> dict[str, float]:
        """MiB of the largest rank by launch; its last sample is at most SAMPLE_SECONDS before its
        end."""
        self._stopped.set()
        self.join()
        return self._peaks


def launch_under_way(work_dir: Path) -> str:
    """Which of LAUNCHES the stream in ``work_dir`` is at, by what it has noted as done."""
    folder = next(path for path in work_dir.iterdir() if path.is_dir())
    taken, path = len(Schema.load(folder / WINDOWS_DIR).windows), folder / DONE_FILE
    done = json.loads(path.read_text()) if path.is_file() else {TEACHER_DIR: 0, BEGUN: 0}
    if done[TEACHER_DIR] < taken:
        return TEACHER_DIR
    return SCORES_DIR if done[BEGUN] < taken else STUDENTS_DIR


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _peak_mib(process_id: int) -> float | None:
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) / KIBI if found else None


def make_windows(folder: Path, rows: int) -> None:
    """The generated stream in WINDOWS windows, once."""
    if (folder / INGESTED_FILE).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = load_settings(PARAMS / "data.yaml", DataSettings).model_copy(
        update={"dataset": "synthetic"}
    )
    dataset = load_dataset(settings, PARAMS / "datasets")
    assert dataset.synthetic is not None
    synthetic = dataset.synthetic.model_copy(update={"rows": rows, "windows": WINDOWS})
    began = perf_counter()
    ingest(
        settings,
        dataset.model_copy(update={"synthetic": synthetic}),
        folder / "data",
        folder / "oracle",
    )
    measured = {"seconds": perf_counter() - began, "peak": _own_peak_mib()}
    (folder / INGESTED_FILE).write_text(json.dumps(measured))


def _own_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBI


def job_of(folder: Path, windows_at_once: int) -> StreamJob:
    """The project's teacher without towers, and one student a domain with both arms and one
    seed."""
    teacher, train = load_teacher(PARAMS)
    teacher = teacher.model_copy(
        update={"model": teacher.model.model_copy(update={"towers": False})}
    )
    students = load_settings(PARAMS / "students.yaml", StudentsSettings)
    domains = Schema.load(folder / "data").domains
    each = [StudentSettings(name=domain, domain=domain) for domain in domains]
    return StreamJob(
        windows_dir=folder / "data",
        partition_file=None,
        teacher=teacher,
        augment=load_settings(PARAMS / "augment.yaml", AugmentSettings),
        students=students.model_copy(update={"students": each, "seeds": [1]}),
        train=train,
        work_dir=folder / "work",
        finished=True,
        windows_at_once=windows_at_once,
    )


def take_windows(folder: Path, windows_at_once: int, seconds: float) -> bool:
    """Calls until ``seconds`` are over or the stream has ended; whether it has. In one process, as
    a watcher's are."""
    job, began = job_of(folder, windows_at_once), perf_counter()
    rows = {window.name: window.rows for window in Schema.load(job.windows_dir).windows}
    while perf_counter() - began < seconds:
        sampler, at = PeakSampler(job.work_dir), perf_counter()
        sampler.start()
        results = folder / "results"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        done = advance(job, results)
        taken = job.work_dir / done.run
        evaluate_windows(
            taken / WINDOWS_DIR,
            folder / "oracle",
            results / TEACHER_DIR,
            results / STUDENTS_DIR,
            taken / "evaluated",
            results,
        )
        new_rows, total = sum(rows[name] for name in done.new), len(done.before) + len(done.new)
        peaks = {MAIN: _own_peak_mib(), **sampler.peaks()}
        call = Call(total, len(done.new), new_rows, perf_counter() - at, peaks)
        if call.new:
            with (folder / CALLS_FILE).open("a") as file:
                file.write(json.dumps(asdict(call)) + "\n")
            print(
                f"{folder.name} rows: {total} of {len(rows)} windows, {call.seconds:.0f} s, MiB "
                f"{peaks}",
                flush=True,
            )
        if total == len(rows):
            return True
    return False


def read_calls(folder: Path) -> list[Call]:
    """The calls of all processes so far."""
    return [Call(**json.loads(line)) for line in (folder / CALLS_FILE).read_text().splitlines()]


def report_lines(work: Path) -> list[str]:
    """A row per size: rates, seconds per window of the first and the last call, peak memory of both
    by process."""
    lines = [
        "| rows | rows per window | calls | ingest rows/s | stream rows/s | s per window, first "
        "/ last call | ingest | "
        f"{' | '.join((MAIN, *(f'{name} rank' for name in LAUNCHES)))} |",
        "|---:|---:|---:|---:|---:|---:|---:|" + "---:|" * (1 + len(LAUNCHES)),
    ]
    for folder in sorted(
        (path for path in work.glob("*") if (path / CALLS_FILE).is_file()),
        key=lambda p: int(p.name),
    ):
        calls, ingested = read_calls(folder), json.loads((folder / INGESTED_FILE).read_text())
        rows, first, last = int(folder.name), calls[0], calls[-1]
        done, seconds = sum(call.rows for call in calls), sum(call.seconds for call in calls)
        share = "" if done == rows else f" ({done / rows:.0%} done)"
        peaks = [f"{_peak(first, name)} / {_peak(last, name)}" for name in (MAIN, *LAUNCHES)]
        lines.append(
            f"| {rows:,}{share} | {rows // WINDOWS:,} | {len(calls)} | "
            f"{rows / ingested['seconds']:,.0f} | "
            f"{done / seconds:,.0f} | {first.seconds / first.new:.1f} / "
            f"{last.seconds / last.new:.1f} | "
            f"{ingested['peak']:,.0f} | {' | '.join(peaks)} |"
        )
    return lines


def _peak(call: Call, name: str) -> str:
    return f"{call.peaks[name]:,.0f}" if name in call.peaks else "-"


def main() -> None:
    """Go on with each size, print the table, and write the report where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--windows-at-once", type=int, default=10)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no call after so long"
    )
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    given = parser.parse_args()
    for rows in given.rows:
        _in_own_process(make_windows, given.work / str(rows), rows)
        ended = _in_own_process(
            take_windows, given.work / str(rows), given.windows_at_once, given.seconds
        )
        print(
            f"{rows:,} rows: {'the stream has ended' if ended else 'call again to go on'}",
            flush=True,
        )
    lines = machine_lines(
        "Stream", "python -m bench.serving.stream --rows 100000 1000000 10000000 --write", {}
    )
    lines += [
        "",
        "Memory: peak resident MiB of a process, first call / last call.",
        "",
        *report_lines(given.work),
    ]
    print_report("\n".join(lines) + "\n", REPORT if given.write else None)


def _in_own_process(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
        return own.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
