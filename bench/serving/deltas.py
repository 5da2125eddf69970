"""What publishing the changed rows of a model costs beside publishing all of it.

python -m bench.serving.deltas --report docs/benchmarks/deltas.md
python -m bench.serving.deltas --exports OLD NEW    # two exports of one student
"""

import argparse
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from bench.serving.latency import ENCODER, made_rows
from bench.shared.report import machine_lines, print_table
from recsys.data.encoder import Encoder
from recsys.data.encoder_format import IdEncoding
from recsys.data.schema import CategoricalFeature, Schema
from recsys.distill.student_settings import STUDENT_MODEL
from recsys.files import _hashes
from recsys.models.factory import build_ranker
from recsys.serving.export import export_ranker
from recsys.serving.predictor import Predictor
from recsys.serving.publication import delta_folder, full_folder, publish, read_delta
from recsys.serving.server import Models, publication_source
from recsys.serving.settings import ServeSettings

FEATURES, TABLE_ROWS, REPEATS = 4, 1_000_000, 3
SHARES = (0.001, 0.01, 0.1)
MEBI = 1 << 20
NAMES = [f"category_{place}" for place in range(FEATURES)]


def made_exports(folder: Path) -> list[Path]:
    """A student of four tables of a million rows, and what it is once each share has changed."""
    features = [CategoricalFeature(name, TABLE_ROWS) for name in NAMES]
    schema = Schema("made", [], features, ["all"], [], 0.1, {})
    columns = [one for one in ENCODER.columns if one.name in NAMES]
    encoder = Encoder(columns, [], [IdEncoding(name, [name], TABLE_ROWS) for name in NAMES])
    state = build_ranker(schema, STUDENT_MODEL, None, 1).state_dict()
    export_ranker(state, schema, STUDENT_MODEL, encoder, folder / "before")
    found = [folder / "before"]
    for share in SHARES:
        draw = torch.Generator().manual_seed(1)
        changed = {name: value.clone() for name, value in state.items()}
        for name, value in changed.items():
            if "embedding_bags" in name:
                value[torch.rand(len(value), generator=draw) < share] += 0.01
            else:
                value += 0.01
        export_ranker(changed, schema, STUDENT_MODEL, encoder, folder / str(share))
        found.append(folder / str(share))
    return found


def bytes_of(folder: Path) -> int:
    """Of its files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def seconds_of(call: Callable[[], Any]) -> float:
    """That ``call`` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def line(old: Path, new: Path, scratch: Path) -> str:
    """A row of the table: bytes, and the median seconds of some repeats."""
    times: dict[str, list[float]] = {"publish": [], "apply": [], "pause": [], "full": []}
    folder, whole = scratch / "published", Predictor.load(new)
    for _ in range(REPEATS):
        shutil.rmtree(folder, ignore_errors=True)
        publish(old, folder)
        served = Models(publication_source(folder), ServeSettings(), CollectorRegistry())
        _hashes.clear()  # as in a process that has not seen these files
        times["publish"].append(seconds_of(lambda folder=folder: publish(new, folder)))
        _hashes.clear()
        times["apply"].append(seconds_of(served.look))
        if served.current.number == 2 and delta_folder(folder, 2).is_dir():
            delta = read_delta(delta_folder(folder, 2))
            put = partial(
                served.current.predictor.tables.put, delta.rows, delta.values, delta.scales
            )
            times["pause"].append(1000 * seconds_of(put))
        _hashes.clear()
        newest = full_folder(folder, 2)
        times["full"].append(seconds_of(lambda newest=newest: Predictor.load(newest)))
        rows = made_rows(512) if new.parent == scratch else whole.example_rows()
        own = served.current.predictor
        np.testing.assert_array_equal(own.predict(rows), whole.predict(rows))
        np.testing.assert_array_equal(own.tables.values, whole.tables.values)
    changed, total = publish(new, folder).rows, len(whole.tables.values)
    if changed is None:
        return f"| {new.name} | {total:,} | over half | | {bytes_of(new) / MEBI:.1f} | | | | |"
    written = bytes_of(delta_folder(folder, 2)) / MEBI
    publish_s, apply_s, pause, load_s = (median(one) for one in times.values())
    return (
        f"| {new.name} | {total:,} | {changed:,} ({changed / total:.2%}) | {written:.2f} | "
        f"{bytes_of(new) / MEBI:.1f} | "
        f"{publish_s:.2f} | {apply_s:.2f} | {pause:.1f} | {load_s:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exports", type=Path, nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--report", type=Path, help="where the Markdown goes, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    title = "Deltas against full models"
    head = machine_lines(title, "python -m bench.serving.deltas", {"threads": "1"})
    with TemporaryDirectory(dir=Path.cwd()) as name:
        scratch = Path(name)
        old, *new = options.exports or made_exports(scratch)
        table = [line(old, one, scratch) for one in new]
    about = [
        "Each run checks that tables and predictions equal those of the full model, bit by bit.",
        f"Medians of {REPEATS}. `publish`: comparing tables, writing the delta and the full model",
        "(hard links); `apply`: from a server's look until it answers with the new model;",
        "`pause`: the part of this in which no prediction runs; `load`: loading the full model.",
    ]
    columns = [
        "| of | rows | changed | delta MiB | full MiB | publish s | apply s | pause ms | load s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    print_table(head, about, [*columns, *table], options.report)


if __name__ == "__main__":
    main()
