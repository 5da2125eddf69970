"""Ingest's rows per CPU second against hand-written loaders, and its memory as logs grow.

    python -m bench.data.ingest speed                          # a generated log in Criteo's layout
    python -m bench.data.ingest speed --criteo day_0 --rows 1000000     # the head of a real one
    PYTHONPATH=PEERS python -m bench.data.ingest speed         # and FuxiCTR, see bench/README.md
    python -m bench.data.ingest memory --rows 1000000 10000000 100000000 --write

speed: each contender reads the same file, takes logarithms of the 13 numbers, hashes the 26
categories and writes Parquet (zstd). Contenders alternate, each in its own process; CPU time
covers all its threads. "ours" also quarantines bad rows, counts collisions, cuts windows and
hashes parts.
memory: a CSV of 6 columns in random row order, with table_rows: auto. Peaks are resident MiB.
Results accumulate in --work; --write makes the report from all of them.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from pandas.core.util.hashing import hash_array

from bench.shared.report import machine_lines, print_report
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.criteo import CATEGORIES, COLUMNS, INTEGERS

REPORT, WORK = Path("docs/benchmarks/ingest.md"), Path(".work/bench-ingest")
# Distinct values of Criteo's 26 categories, as published for the Kaggle log
DISTINCT = [
    1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194,
    27, 14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
]  # fmt: skip
TABLE_ROWS, CHUNK_ROWS, STEP_ROWS = 200_000, 100_000, 1_000_000
START_S, DAYS = 1_704_067_200, 10
MEBI = 1024


def criteo_log(path: Path, rows: int) -> None:
    """A generated log in Criteo's layout: categories of a power law, a tenth of all missing."""
    random = np.random.default_rng(0)
    columns: dict[str, pl.Series] = {"label": pl.Series(random.integers(0, 2, rows))}
    for name in INTEGERS:
        number = pl.Series(np.minimum(random.pareto(1.1, rows) * 3, 1e6).astype(np.int64))
        columns[name] = number.set(pl.Series(random.random(rows) < 0.1), None)
    for name, distinct in zip(CATEGORIES, DISTINCT, strict=True):
        number = (random.zipf(1.2, rows) * 2_654_435_761 % distinct).astype(np.uint64)
        digits = (number * np.uint64(0x9E3779B1) + np.uint64(distinct)) & np.uint64(2**32 - 1)
        distinct_digits, place = np.unique(digits, return_inverse=True)
        texts = pl.Series([f"{one:08x}" for one in distinct_digits.tolist()])
        columns[name] = texts[place].set(pl.Series(random.random(rows) < 0.1), None)
    pl.DataFrame(columns).write_csv(path, separator="\t", include_header=False)


def unsorted_log(path: Path, rows: int) -> None:
    """Time, label, user, ad, price and device of ``rows`` rows in no order."""
    with path.open("wb") as file:
        for first in range(0, rows, STEP_ROWS):
            random = np.random.default_rng(first)
            size = min(STEP_ROWS, rows - first)
            pl.DataFrame(
                {
                    "ts": START_S + random.integers(0, DAYS * 86_400, size),
                    "y": (random.random(size) < 0.1).astype(np.int8),
                    "user": random.zipf(1.3, size) % 1_000_000,
                    "ad": random.integers(0, 50_000, size),
                    "price": random.random(size).round(3),
                    "device": np.array(["phone", "desk", "tablet"])[random.integers(0, 3, size)],
                }
            ).write_csv(file, include_header=first == 0)


def ours(log: Path, folder: Path) -> None:
    """recsys.data.ingest."""
    section = {
        "files": [log.name],
        "start": "2024-01-01",
        "rows_per_second": 75.8,
        "table_rows": TABLE_ROWS,
        "chunk_rows": CHUNK_ROWS,
    }
    dataset = DatasetSettings.model_validate({"format": "criteo", "criteo": section})
    ingest(DataSettings(root=str(log.parent)), dataset, folder / "windows", folder / "oracle")


def polars_simple(log: Path, folder: Path) -> None:
    """A streaming scan with polars' own hash, which changes between its versions; no bad row is
    looked for."""
    types = dict.fromkeys(INTEGERS, pl.Int64) | dict.fromkeys(CATEGORIES, pl.String)
    scan = pl.scan_csv(
        log, separator="\t", has_header=False, new_columns=COLUMNS, schema_overrides=types
    )
    scan.with_columns(
        pl.col(INTEGERS).cast(pl.Float32).log1p(),
        (pl.col(CATEGORIES).hash() % (TABLE_ROWS - 1) + 1).cast(pl.Int64).fill_null(0),
    ).sink_parquet(folder / "all.parquet", compression="zstd")


def pandas_common(log: Path, folder: Path) -> None:
    """read_csv in chunks, hash_array per column."""
    texts: Any = dict.fromkeys(CATEGORIES, "str")
    chunks = pd.read_csv(
        log, sep="\t", header=None, names=COLUMNS, dtype=texts, chunksize=CHUNK_ROWS
    )
    for index, frame in enumerate(chunks):
        for name in INTEGERS:
            frame[name] = np.log1p(frame[name].clip(lower=0))
        for name in CATEGORIES:
            known = frame[name].notna()
            text = frame[name].fillna("").to_numpy().astype(object)
            rows = hash_array(text, categorize=True) % np.uint64(TABLE_ROWS - 1) + np.uint64(1)
            frame[name] = np.where(known, rows, 0).astype("int64")
        frame.to_parquet(folder / f"{index}.parquet", compression="zstd")


def fuxictr(log: Path, folder: Path) -> None:
    """FuxiCTR's FeatureProcessor: vocabularies counted first, then batches encoded, without Ray."""
    number = {"active": True, "dtype": "float", "type": "numeric"}
    text = {"active": True, "dtype": "str", "type": "categorical"}
    processor = import_module("fuxictr.preprocess").FeatureProcessor(
        feature_cols=[{"name": INTEGERS, **number}, {"name": CATEGORIES, **text}],
        label_col={"name": "label", "dtype": "float"},
        dataset_id="criteo",
        data_root=str(folder),
    )
    types = dict.fromkeys(INTEGERS, pl.Float64) | dict.fromkeys(CATEGORIES, pl.String)
    scan = pl.scan_csv(
        log, separator="\t", has_header=False, new_columns=COLUMNS, schema_overrides=types
    )
    scan = processor.preprocess(scan.with_columns(pl.col(INTEGERS).clip(lower_bound=0).log1p()))
    processor.fit(scan)
    for index, frame in enumerate(scan.collect().iter_slices(CHUNK_ROWS)):
        batch = processor.transform({name: frame[name].to_numpy() for name in frame.columns})
        pl.DataFrame(batch).write_parquet(folder / f"{index}.parquet", compression="zstd")


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "ours": ours,
    "polars, simple hash": polars_simple,
    "pandas": pandas_common,
    "FuxiCTR": fuxictr,
}


def table(log: Path, folder: Path) -> None:
    """Ingest of a table in no order."""
    section = {
        "files": [log.name],
        "file_format": "csv",
        "time": {"column": "ts", "unit": "s"},
        "label": "y",
        "dense": ["price"],
        "categorical": [{"column": name, "table_rows": "auto"} for name in ("user", "ad")]
        + [{"column": "device", "table_rows": 100}],
    }
    dataset = DatasetSettings.model_validate({"format": "table", "table": section})
    ingest(DataSettings(root=str(log.parent)), dataset, folder / "windows", folder / "oracle")


def measured(function: Callable[[Path, Path], None], log: Path, folder: Path) -> dict[str, Any]:
    """CPU seconds, seconds and peak resident MiB, in a process of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = pool.submit(_measured, function, log, folder).result()
    shutil.rmtree(folder)
    return found


def _measured(function: Callable[[Path, Path], None], log: Path, folder: Path) -> dict[str, Any]:
    if function is fuxictr:
        import_module("fuxictr.preprocess")  # an import is no part of the work
    before, start, cpu = _peak_mib(), perf_counter(), process_time()
    function(log, folder)
    return {
        "cpu_s": process_time() - cpu,
        "seconds": perf_counter() - start,
        "before_mib": before,
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> float:
    """Of this process alone; ru_maxrss would be that of the one that started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / MEBI for line in lines if line.startswith("VmHWM"))


def speed(work: Path, log: Path | None, rows: int, repeats: int) -> list[dict[str, Any]]:
    """Each contender ``repeats`` times, one after the other."""
    head = work / "criteo.tsv"
    if log is None:
        criteo_log(head, rows)
    else:
        with log.open("rb") as source, head.open("wb") as target:
            target.writelines(line for line, _ in zip(source, range(rows), strict=False))
    name = "generated" if log is None else log.name
    found = [
        {"what": "speed", "contender": contender, "log": name, "rows": rows, "repeat": repeat}
        | measured(function, head, work / "out")
        for repeat in range(repeats)
        for contender, function in CONTENDERS.items()
        if contender != "FuxiCTR" or find_spec("fuxictr")
    ]
    head.unlink()
    return found


def memory(work: Path, rows: int) -> list[dict[str, Any]]:
    """Ingest of so many rows."""
    log = work / "log.csv"
    unsorted_log(log, rows)
    found = {"what": "memory", "rows": rows, "log_mb": log.stat().st_size / 1e6}
    found |= measured(table, log, work / "out")
    log.unlink()
    return [found]


def report(results: list[dict[str, Any]]) -> str:
    """The Markdown of all results so far."""
    lines = machine_lines("Ingest", "python -m bench.data.ingest speed; ... memory", {})
    lines += ["", *(__doc__ or "").split("\n\n")[2].strip().splitlines(), ""]
    by = [one for one in results if one["what"] == "speed"]
    for log in dict.fromkeys(one["log"] for one in by):
        runs = [one for one in by if one["log"] == log]
        lines += [
            f"## Rows per CPU second, {log} log of {runs[0]['rows']:,} rows",
            "",
            "| | median | lowest to highest | share of polars' rate, run by run | peak MiB |",
            "|---|---:|---:|---:|---:|",
        ]
        rates = {
            name: [one["rows"] / one["cpu_s"] for one in runs if one["contender"] == name]
            for name in dict.fromkeys(one["contender"] for one in runs)
        }
        for name, found in rates.items():
            pairs = zip(found, rates["polars, simple hash"], strict=True)
            shares = [own / other for own, other in pairs]
            peak = max(one["peak_mib"] for one in runs if one["contender"] == name)
            lines.append(
                f"| {name} | {statistics.median(found):,.0f} | {min(found):,.0f} to "
                f"{max(found):,.0f} | {min(shares):.2f} to {max(shares):.2f} | {peak:,.0f} |"
            )
        lines.append("")
    lines += [
        "## Memory for a table in random order, data.memory_gb 2",
        "",
        '"At start" is the memory of the process before ingest begins.',
        "",
        "| rows | log, MB | peak MiB | at start, MiB | rows per CPU second | seconds |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for one in sorted((x for x in results if x["what"] == "memory"), key=lambda x: x["rows"]):
        lines.append(
            f"| {one['rows']:,} | {one['log_mb']:,.0f} | {one['peak_mib']:,.0f} | "
            f"{one['before_mib']:,.0f} | {one['rows'] / one['cpu_s']:,.0f} | "
            f"{one['seconds']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and print the report of all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["speed", "memory", "report"])
    parser.add_argument("--criteo", type=Path, default=None, help="a real log; its head is taken")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = options.work / "results.jsonl"
    for rows in options.rows if options.what != "report" else []:
        found = (
            speed(options.work, options.criteo, rows, options.repeats)
            if options.what == "speed"
            else memory(options.work, rows)
        )
        with results.open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in found)
    measured_so_far = [json.loads(line) for line in results.read_text().splitlines()]
    print_report(report(measured_so_far), REPORT if options.write else None)


if __name__ == "__main__":
    main()
