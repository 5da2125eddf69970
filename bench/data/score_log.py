"""Does memory grow with the score log? Append 10^5 to 10^8 records and join them, a window at a
time.

    python -m bench.data.score_log --rows 100000 1000000
    python -m bench.data.score_log --rows 100000000 --seconds 200   # again until the log is joined
    python -m bench.data.score_log --rows 100000000 --write         # and the report of --work

The log is written by ScoreLog, as scoring does; the logits are a hash of example_id in a teacher's
place. It is read by WindowReader.label_batches, as a student does: labels come up to 1.5 windows
late, so that a window of labels joins records of up to three windows. Ids are scattered over 63
bits, as hashed ones are: any row group may hold any id. Every joined score is compared with the
hash. Each step is a process of its own; examples and log are removed when a size is done.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bench.shared.report import machine_lines, print_report
from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import CategoricalFeature, Schema, Window
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.score_log import SCORE_SCHEMA, ScoreLog, WindowFacts
from recsys.distill.snapshots import Snapshot

REPORT, WORK = Path("docs/benchmarks/score_log.md"), Path(".work/bench-score-log")
EXAMPLES_DIR, LOG_DIR = "examples", "log"
CALLS_FILE, SIZE_FILE = "calls.jsonl", "size.json"
WINDOW_MS = 3_600_000
MAX_DELAY_MS = 3 * WINDOW_MS // 2
BATCH_SIZE = 4096
SCATTER = 0x1E3779B97F4A7C15  # odd: row x SCATTER mod 2^63 is another id for each row
MIX = np.uint64(0xBF58476D1CE4E5B9)
UNSCORED = 64  # one example in so many has no score
LOGIT_BITS, LOGIT_RANGE = 24, 8.0  # logits are in [-4, 4), exact in float32
MEBI = 1024


@dataclass(frozen=True)
class Case:
    """A log of ``rows`` examples in windows of ``window_rows``, in ``folder``."""

    folder: Path
    rows: int
    window_rows: int

    @property
    def windows(self) -> list[Window]:
        """The last one may be shorter."""
        starts = range(0, self.rows, self.window_rows)
        return [
            Window(
                f"w{index:06d}",
                index * WINDOW_MS,
                (index + 1) * WINDOW_MS,
                min(self.window_rows, self.rows - start),
                MAX_DELAY_MS,
            )
            for index, start in enumerate(starts)
        ]


@dataclass(frozen=True)
class Call:
    """One process of one step; ``peaks`` are resident MiB: before the first window, after it, and
    at the end.

    ``done`` windows in all calls so far; ``rows`` are those of this call: written, or joined.
    ``scored`` of them had a score, ``wrong`` not what the hash says.
    """

    step: str
    done: int
    rows: int
    seconds: float
    peaks: tuple[float, float, float]
    scored: int = 0
    wrong: int = 0


@dataclass
class Count:
    """What one window adds to a :class:`Call`."""

    rows: int
    seconds: float
    scored: int = 0
    wrong: int = 0


def hashed(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 mixed bits of each id [N]."""
    mixed = ids.astype(np.uint64) * MIX
    return (mixed ^ (mixed >> np.uint64(31))) * MIX


def true_scores(ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The logit [N] of each id, NaN for those without one."""
    bits = hashed(ids)
    logits = (bits >> np.uint64(64 - LOGIT_BITS)).astype(np.float32) * np.float32(
        LOGIT_RANGE / 2**LOGIT_BITS
    )
    return np.where(
        bits % np.uint64(UNSCORED) == 0, np.float32(np.nan), logits - np.float32(LOGIT_RANGE / 2)
    )


def ids_of(window: Window, window_rows: int) -> NDArray[np.int64]:
    """The window's example ids [N], in event time."""
    first = window.start_ms // WINDOW_MS * window_rows
    rows = np.arange(first, first + window.rows, dtype=np.uint64)
    return (rows * np.uint64(SCATTER) & np.uint64(2**63 - 1)).astype(np.int64)


def event_times(window: Window) -> NDArray[np.int64]:
    """Evenly over the window [N], ms."""
    return window.start_ms + np.arange(window.rows, dtype=np.int64) * WINDOW_MS // window.rows


def write_examples(case: Case, window: Window) -> Count:
    """A window of examples as ingest lays it, with one number and one id; counts those whose label
    will be met."""
    ids, events = ids_of(window, case.window_rows), event_times(window)
    delays = (hashed(ids) % np.uint64(MAX_DELAY_MS)).astype(np.int64)
    frame = pl.DataFrame(
        {"example_id": ids, "event_time": events, "label_time": events + delays}
    ).with_columns(
        domain=pl.lit(0),
        group=pl.lit(0),
        label=pl.col("example_id") % 2,
        number=pl.lit(0.5),
        item=pl.lit(0),
    )
    folder = case.folder / EXAMPLES_DIR / window.name
    folder.mkdir(parents=True, exist_ok=True)
    began = perf_counter()
    frame.write_parquet(folder / "part-00000.parquet")
    met = int((events + delays < case.windows[-1].end_ms).sum())
    return Count(met, perf_counter() - began)


def append(case: Case, window: Window) -> Count:
    """A window's records, in segments as long as scoring's."""
    log, segment_rows = ScoreLog(case.folder / LOG_DIR), AugmentSettings().segment_rows
    ids, events = ids_of(window, case.window_rows), event_times(window)
    logits, written, seconds = true_scores(ids), 0, 0.0
    log.drop(window.name)
    for index, start in enumerate(range(0, window.rows, segment_rows)):
        part = slice(start, start + segment_rows)
        records = pl.DataFrame({"example_id": ids[part], "logit": logits[part]}).filter(
            pl.col("logit").is_not_nan()
        )
        known = pl.DataFrame(
            {"example_id": ids[part], "staleness_ms": events[part] - window.start_ms}
        )
        records = records.join(known, on="example_id", maintain_order="left").with_columns(
            snapshot=pl.lit(snapshot_of(window).name), high_water_mark=pl.lit(window.start_ms)
        )
        began = perf_counter()
        written += log.write_chunk(window.name, index, records.select(list(SCORE_SCHEMA)))
        seconds += perf_counter() - began
    began = perf_counter()
    log.finish(
        WindowFacts(window.name, window.rows, written, snapshot_of(window).name, None, None, [], {})
    )
    return Count(written, seconds + perf_counter() - began)


def snapshot_of(window: Window) -> Snapshot:
    """The teacher as it was when the window began."""
    return Snapshot(
        f"before-{window.name}", window.name, window.start_ms, None, "hash", held_back=False
    )


def join(case: Case, window: Window) -> Count:
    """The labels of a window with their scores, in batches; the comparison with the truth is not
    timed."""
    reader, count, began = WindowReader(case.folder / EXAMPLES_DIR), Count(0, 0.0), perf_counter()
    log = ScoreLog(case.folder / LOG_DIR, reader.logits)
    for batch in reader.label_batches(window, BATCH_SIZE, 0, 1, scores=log):
        count.seconds += perf_counter() - began
        compare(batch, count)
        began = perf_counter()
    count.seconds += perf_counter() - began
    return count


def compare(batch: Batch, count: Count) -> None:
    """Count the batch's rows, those with a score and those whose score is not the true one."""
    real = batch.weight.numpy() > 0
    found, truth = batch.score.numpy()[real], true_scores(batch.example_id.numpy()[real])
    count.rows += len(found)
    count.scored += int((~np.isnan(found)).sum())
    count.wrong += int((~((found == truth) | (np.isnan(found) & np.isnan(truth)))).sum())


STEPS: dict[str, Callable[[Case, Window], Count]] = {
    "examples": write_examples,
    "append": append,
    "join": join,
}


def run_step(case: Case, step: str, seconds: float) -> bool:
    """Go on with ``step`` until all windows are done or ``seconds`` are over; whether they are
    done."""
    done = max((call.done for call in read_calls(case) if call.step == step), default=0)
    began, peaks, total = perf_counter(), [peak_mib()], Count(0, 0.0)
    left = case.windows[done:]
    for window in left:
        count = STEPS[step](case, window)
        total.rows, total.seconds = total.rows + count.rows, total.seconds + count.seconds
        total.scored, total.wrong = total.scored + count.scored, total.wrong + count.wrong
        done += 1
        if len(peaks) == 1:
            peaks.append(peak_mib())
        if perf_counter() - began > seconds:
            break
    if left:
        call = Call(
            step,
            done,
            total.rows,
            total.seconds,
            (peaks[0], peaks[-1], peak_mib()),
            total.scored,
            total.wrong,
        )
        with (case.folder / CALLS_FILE).open("a") as file:
            file.write(json.dumps(asdict(call)) + "\n")
    return done == len(case.windows)


def run_case(case: Case, seconds: float) -> bool:
    """All steps of a size, each in its own process, from where the last call has stopped; whether
    it is done."""
    size_file = case.folder / SIZE_FILE
    if size_file.is_file():
        return True
    prepare(case)
    began = perf_counter()
    for step in STEPS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
            if not own.submit(run_step, case, step, seconds - (perf_counter() - began)).result():
                return False
    log = case.folder / LOG_DIR
    size_file.write_text(
        json.dumps({"bytes": sum(path.stat().st_size for path in log.rglob("*.parquet"))})
    )
    shutil.rmtree(case.folder / EXAMPLES_DIR)
    shutil.rmtree(log)
    return True


def prepare(case: Case) -> None:
    """The folders, the examples' schema and what the log says of its snapshots."""
    examples, log = case.folder / EXAMPLES_DIR, case.folder / LOG_DIR
    examples.mkdir(parents=True, exist_ok=True)
    log.mkdir(exist_ok=True)
    items = [CategoricalFeature("item", 1)]
    Schema("score log", ["number"], items, ["all"], case.windows, 0.5, {}).save(examples)
    ScoreLog(log).describe(None, [snapshot_of(window) for window in case.windows])


def read_calls(case: Case) -> list[Call]:
    """The calls of all processes so far."""
    path = case.folder / CALLS_FILE
    if not path.is_file():
        return []
    return [Call(**json.loads(line)) for line in path.read_text().splitlines()]


def peak_mib() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBI


def case_of(work: Path, rows: int, window_rows: int) -> Case:
    """Its folder says what it is."""
    return Case(work / f"{rows}-{window_rows}", rows, window_rows)


def report_lines(cases: list[Case]) -> list[str]:
    """A row per size: bytes, rates, and peak memory after the first window and at the end."""
    lines = [
        "| rows | windows | log, MB | bytes per row | appended rows/s | append, MiB | joined "
        "rows/s | join, MiB "
        "| joined | with a score | wrong |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        size = json.loads((case.folder / SIZE_FILE).read_text())["bytes"]
        met, written, joined = (_total(case, step) for step in STEPS)
        assert joined.rows == met.rows, f"{joined.rows:,} rows joined of {met.rows:,}"
        lines.append(
            f"| {case.rows:,} | {len(case.windows):,} | {size / 1e6:,.0f} | "
            f"{size / written.rows:.1f} | "
            f"{written.rows / written.seconds:,.0f} | {_peaks(written)} | "
            f"{joined.rows / joined.seconds:,.0f} | {_peaks(joined)} | "
            f"{joined.rows:,} | {joined.scored:,} | {joined.wrong:,} |"
        )
    return lines


def _total(case: Case, step: str) -> Call:
    """All calls of a step as one: its largest peaks."""
    calls = [call for call in read_calls(case) if call.step == step]
    before, first, end = (max(call.peaks[place] for call in calls) for place in range(3))
    return Call(
        step,
        calls[-1].done,
        sum(call.rows for call in calls),
        sum(call.seconds for call in calls),
        (before, first, end),
        sum(call.scored for call in calls),
        sum(call.wrong for call in calls),
    )


def _peaks(call: Call) -> str:
    before, first, end = call.peaks
    return f"{before:,.0f} / {first:,.0f} / {end:,.0f}"


def main() -> None:
    """Go on with each size, print the table, and write the report where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--window-rows", type=int, default=100_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no window after so long"
    )
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    given = parser.parse_args()
    for rows in given.rows:
        ended = run_case(case_of(given.work, rows, given.window_rows), given.seconds)
        print(
            f"{rows:,} rows: {'the log is joined' if ended else 'call again to go on'}", flush=True
        )
    sizes = [path.parent.name.split("-") for path in given.work.glob(f"*/{SIZE_FILE}")]
    cases = [
        case_of(given.work, rows, each)
        for each, rows in sorted((int(each), int(rows)) for rows, each in sizes)
    ]
    lines = machine_lines(
        "Score log",
        "python -m bench.data.score_log --rows 100000 1000000 10000000 100000000 --write",
        {},
    )
    lines += [
        "",
        "Peak resident MiB of a process: before its first window / after it / at the end. Joined "
        "rows/s are those of",
        "the student's loader with the join, from disk to batches. Every joined score was compared "
        "with the true one.",
        "",
        *report_lines(cases),
    ]
    print_report("\n".join(lines) + "\n", REPORT if given.write else None)


if __name__ == "__main__":
    main()
