"""Many small models on the same rows, in one process: each predicts a window, then learns it;
results in a file."""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import nn

from recsys.config import load_settings
from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import Schema
from recsys.evaluation.metrics import compute_metrics
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.progress import RowProgress
from recsys.towers.engine import tower_engine
from recsys.training.engine import Engine
from recsys.training.settings import TrainSettings
from recsys.validation.progressive import DataView, predict_then_train

PARAMS = Path("params")
CONFIDENCE = 0.95
MORE_TO_DO = "more to do: the same command goes on"
Work = Iterable[tuple[str, Callable[[], Any]]]  # keys and what computes them


@dataclass(frozen=True)
class Rows:
    """The batches of a windows folder in memory: by event time, to predict, and by label time, to
    train on."""

    schema: Schema
    predicted: list[list[Batch]]
    trained: list[list[Batch]]


def read_rows(windows_dir: Path, batch_size: int, windows: int | None) -> Rows:
    """The first ``windows`` windows (None: all) for one rank."""
    reader = WindowReader(windows_dir)
    chosen = reader.windows[:windows]
    return Rows(
        reader.schema,
        [list(reader.event_batches(window, batch_size, 0, 1)) for window in chosen],
        [list(reader.label_batches(window, batch_size, 0, 1)) for window in chosen],
    )


def validate_progressively(
    model: nn.Module,
    rows: Rows,
    train: TrainSettings,
    seed: int,
    first_window: int,
    partition: Partition | None = None,
) -> dict[str, float]:
    """Metrics of the pooled predictions from ``first_window`` on; each window is predicted before
    the model trains on it.

    Called inside a process group of one rank.
    """
    engine = tower_engine(model, train, seed, partition)
    logits, labels, groups = [], [], []
    for index, (predicted, trained) in enumerate(zip(rows.predicted, rows.trained, strict=True)):
        if index >= first_window:
            logits += [engine.predict(batch).numpy() for batch in predicted]
            labels += [batch.label.numpy() for batch in predicted]
            groups += [batch.group.numpy() for batch in predicted]
        for batch in trained:
            engine.train_step(batch, engine.serving_loss)
    return compute_metrics(
        np.concatenate(logits), np.concatenate(labels), np.concatenate(groups)
    ).as_dict()


def headline(history: list[dict[str, Any]], first_window: int) -> tuple[float, float]:
    """Size-weighted NE and AUC of a teacher's windows from ``first_window`` on."""
    judged = history[first_window:]
    rows = [one["rows"] for one in judged]
    ne, auc = (
        float(np.average([one[key] for one in judged], weights=rows)) for key in ("ne", "auc")
    )
    return ne, auc


class Results:
    """Results by key in a JSON file, written after each, so that a stopped bench goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of ``key``, computed where the file has none."""
        if key not in self.values:
            self.values[key] = compute()
            scratch = self._path.with_suffix(".tmp")
            scratch.write_text(json.dumps(self.values))
            scratch.replace(self._path)
        return self.values[key]

    def fill(self, work: Work, minutes: float) -> bool:
        """Compute what is missing until ``minutes`` have passed; whether all of ``work`` is
        there."""
        end = time.monotonic() + 60 * minutes
        for key, compute in work:
            if time.monotonic() > end:
                return False
            if key not in self.values:
                start = time.monotonic()
                print(
                    f"{key}: {self.get(key, compute)} in {time.monotonic() - start:.1f} s",
                    flush=True,
                )
        return True


def resumable_parser(
    description: str | None, several_results: bool = False
) -> argparse.ArgumentParser:
    """A command line with the file of :class:`Results` (or several, a log or process each) and a
    limit in minutes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count = "+" if several_results else None
    parser.add_argument(
        "--results",
        type=Path,
        nargs=count,
        required=True,
        help="JSON that a later call goes on from",
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="stop after so long; a later call goes on"
    )
    return parser


def fill(
    work: Callable[[argparse.Namespace, Results], Work], given: argparse.Namespace, path: Path
) -> bool:
    """Measure what ``path`` lacks of ``work``, for ``given.minutes``; whether nothing is missing.
    Body of a rank."""
    results = Results(path)
    return results.fill(work(given, results), given.minutes)


def half_width(values: NDArray[np.float64]) -> float:
    """Half the width of the t interval of the mean."""
    quantile = student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * np.std(values, ddof=1) / np.sqrt(len(values)))


def shown(values: NDArray[np.float64]) -> str:
    """Mean and half the width of its interval; bold where the interval leaves 0 out."""
    if not values.any():
        return "0 (bitwise)"
    half = half_width(values)
    text = f"{values.mean():+.4f} ± {half:.4f}"
    return f"**{text}**" if abs(values.mean()) > half else text


def predict_then_train_alone(
    windows: Path,
    domain: str | None,
    model: ModelSettings,
    settings: TrainSettings,
    passes: int,
    seed: int,
    folder: Path,
) -> None:
    """Predict and learn all windows on this rank, ``passes`` of the dense part; for ``launch``.

    Args:
        domain: whose rows; None: all.
        folder: holds the predictions afterwards.
    """
    reader = WindowReader(windows)
    engine = Engine(build_ranker(reader.schema, model, None, seed, "meta"), settings, seed)
    view = DataView(
        reader,
        settings.global_batch_size,
        None if domain is None else reader.schema.domains.index(domain),
        fits_windows=True,
        dense_passes=passes,
    )
    with RowProgress("bench", 1, enabled=False) as progress:
        predict_then_train(engine, engine.serving_loss, view, folder, progress)


def train_settings(batch_size: int) -> TrainSettings:
    """Those of params/ on one rank; the number of ranks changes the order of sums only."""
    update = {"world_size": 1, "global_batch_size": batch_size, "overlap": False}
    return load_settings(PARAMS / "train.yaml", TrainSettings).model_copy(update=update)
