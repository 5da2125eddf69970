"""How long a served prediction takes: the library, HTTP and start-up, beside the bare network.

python -m bench.serving.latency --report docs/benchmarks/serving.md
python -m bench.serving.latency --export models/students/feed/distilled/export
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench.shared.report import machine_lines, print_table
from recsys.data.encoder import Encoder
from recsys.data.encoder_format import DenseEncoding, IdEncoding, RawColumn
from recsys.data.schema import CategoricalFeature, Schema
from recsys.data.standardise import Standard
from recsys.distill.student_settings import STUDENT_MODEL
from recsys.models.factory import build_ranker
from recsys.serving.export import export_ranker
from recsys.serving.export_format import DENSE_INPUT, EMBEDDINGS_INPUT, LOGITS_OUTPUT
from recsys.serving.network import Network
from recsys.serving.predictor import Predictor
from recsys.serving.raw_encoder import columns_of

DENSE, CATEGORICAL, TABLE_ROWS = 8, 16, 20_000
BATCH, REPETITIONS = 512, 300
COMMAND = "python -m bench.serving.latency"
DENSE_NAMES = [f"number_{place}" for place in range(DENSE)]
ID_NAMES = [f"category_{place}" for place in range(CATEGORICAL)]
SHARED = [*DENSE_NAMES, *ID_NAMES[:8]]  # of a user and context, where candidates are ranked
SCHEMA = Schema(
    "made",
    DENSE_NAMES,
    [CategoricalFeature(name, TABLE_ROWS) for name in ID_NAMES],
    ["all"],
    [],
    0.1,
    {},
    serving_standard=Standard([0.0] * DENSE, [1.0] * DENSE, 5.0),
)
ENCODER = Encoder(
    [
        *(RawColumn(name, "number", optional=True) for name in DENSE_NAMES),
        *(RawColumn(name, "text") for name in ID_NAMES),
    ],
    [DenseEncoding(name, name) for name in DENSE_NAMES],
    [IdEncoding(name, [name], TABLE_ROWS) for name in ID_NAMES],
)


def made_rows(count: int) -> list[dict[str, Any]]:
    """Rows of 8 numbers and 16 categories of 5,000 values each."""
    draw = np.random.default_rng(1)
    rows = []
    for _ in range(count):
        row: dict[str, Any] = {name: float(draw.lognormal()) for name in DENSE_NAMES}
        row |= {name: f"value {draw.integers(5000)}" for name in ID_NAMES}
        rows.append(row)
    return rows


def made_export(folder: Path) -> None:
    """A student of the default shape, with random weights."""
    ranker = build_ranker(SCHEMA, STUDENT_MODEL, None, 1)
    encoder = replace(ENCODER, examples=made_rows(3))
    export_ranker(ranker.state_dict(), SCHEMA, STUDENT_MODEL, encoder, folder)


def milliseconds(call: Callable[[], Any]) -> list[float]:
    """Of each of 300 calls, after 20."""
    found = []
    for place in range(REPETITIONS + 20):
        began = time.perf_counter()
        call()
        if place >= 20:
            found.append(1000 * (time.perf_counter() - began))
    return found


def line(name: str, rows: int, times: list[float]) -> str:
    """A row of the table."""
    high = float(np.quantile(times, 0.99))
    return f"| {name} | {rows} | {statistics.median(times):.3f} | {high:.3f} |"


def library_lines(predictor: Predictor, rows: list[dict[str, Any]]) -> list[str]:
    """The library beside the bare session on the same inputs, in turns."""
    lines = []
    for count in (1, BATCH):
        given = [rows[place % len(rows)] for place in range(count)]
        columns, _ = columns_of(given, predictor.format)
        encoded = predictor._encoder.encode(columns, count)
        inputs = {
            DENSE_INPUT: predictor._dense(encoded.dense, np.zeros(count, np.int64)),
            EMBEDDINGS_INPUT: predictor._embeddings(encoded, count),
        }

        shared = {name: given[0][name] for name in SHARED if name in given[0]}
        candidates = [
            {name: value for name, value in row.items() if name not in shared} for row in given
        ]
        calls: dict[str, Callable[[], Any]] = {
            "ONNX Runtime, the bare network": partial(
                predictor.session.run, [LOGITS_OUTPUT], inputs
            ),
            "columns out of rows": partial(columns_of, given, predictor.format),
            "encoding": partial(predictor._encoder.encode, columns, count),
            "look-up in the tables": partial(predictor._embeddings, encoded, count),
            "`Predictor.predict`, from raw rows": partial(predictor.predict, given),
            "`Predictor.predict`, from columns": partial(predictor.predict, columns),
            f"`Predictor.rank`, {len(shared)} of {len(given[0])} columns shared": partial(
                predictor.rank, shared, candidates
            ),
        }
        lines += [line(name, count, milliseconds(call)) for name, call in calls.items()]
    return lines


def contenders() -> list[str]:
    """torch.export's program and eager PyTorch on the same network."""
    network = Network(build_ranker(SCHEMA, STUDENT_MODEL, None, 1, table_device="meta")).eval()
    lines = []
    width, dimension = SCHEMA.dense_width, STUDENT_MODEL.embedding_dimension
    for count in (1, BATCH):
        inputs = (torch.zeros(count, width), torch.zeros(count, CATEGORICAL, dimension))
        with torch.inference_mode():
            exported = torch.export.export(network, inputs).module()
            for name, call in (("torch.export", exported), ("eager PyTorch", network)):

                def run(call: Any = call, inputs: Any = inputs) -> Any:
                    with torch.inference_mode():
                        return call(*inputs)

                lines.append(line(f"{name}, the bare network", count, milliseconds(run)))
    return lines


def http_lines(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """A server of its own process, asked by one connection that is kept open."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "flows.serve", str(folder.absolute()) + "/", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("http://")[1].split()[0].split(":")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def ask(body: bytes) -> None:
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()

        one = json.dumps({"rows": rows[:1]}).encode()
        ask(one)
        started = time.perf_counter() - began
        lines = []
        for count in (1, BATCH):
            given = [rows[place % len(rows)] for place in range(count)]
            body = json.dumps({"rows": given}).encode()
            lines.append(line("HTTP /predict", count, milliseconds(lambda body=body: ask(body))))
        return [*lines, f"| start to first answer | 1 | {1000 * started:.0f} | |"]
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, help="a student's; else one of random weights")
    parser.add_argument("--report", type=Path, help="where the Markdown goes, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = machine_lines("Serving: how long a prediction takes", COMMAND, {"threads": "1"})
    with TemporaryDirectory() as scratch:
        folder = options.export or Path(scratch) / "export"
        if options.export is None:
            made_export(folder)
        predictor = Predictor.load(folder)
        rows = made_rows(BATCH) if options.export is None else predictor.example_rows()
        table = [*library_lines(predictor, rows), *contenders(), *http_lines(folder, rows)]
    shape = (
        f"{options.export}"
        if options.export
        else (
            f"A student of the default shape: {DENSE} dense features and {CATEGORICAL} "
            f"categorical ones with tables of {TABLE_ROWS:,} rows, random weights"
        )
    )
    about = (
        f"{shape}. Milliseconds per call, over {REPETITIONS} calls after 20 warm-up calls. "
        "torch.export and eager PyTorch run on one thread, always with the default shape."
    )
    columns = ["| what | rows | median | p99 |", "|---|---:|---:|---:|"]
    print_table(head, [about], [*columns, *table], options.report)


if __name__ == "__main__":
    main()
