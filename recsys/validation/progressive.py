"""Progressive validation: for every window in turn, predict, measure, then train on what became
known."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
from torch import Tensor

from recsys.data.loader import Batch, ScoreJoin, WindowReader
from recsys.data.names import feature_name
from recsys.data.rows import Rows
from recsys.data.schema import MAIN_TASK, WEIGHT, Window, task_columns
from recsys.evaluation.predictions import (
    METRICS_FILE,
    PREDICTION_SCHEMA,
    PREDICTIONS_DIR,
    measure,
)
from recsys.files import write_json
from recsys.models.ranker import SERVING
from recsys.progress import RowProgress, note_live
from recsys.training import ranks
from recsys.training.batch_size import fitting_batch
from recsys.training.engine import Engine, LossFunction, Part
from recsys.training.late import Late, StepLoss
from recsys.training.non_finite import STEPS_BEHIND, NonFiniteError
from recsys.training.optimizers import rate_factor
from recsys.training.overlap import load_ahead, train_batches
from recsys.training.resume import Checkpoints, Position

SKIPPED = "skipped_batches"


@dataclass(frozen=True)
class DataView:
    """The data for one model: windows of ``reader``, for one ``domain`` (None: all), with or
    without scores.

    ``batch_size`` is global; with ``fits_windows`` it is the maximum, and each window uses the size
    that fits its rows (:func:`recsys.training.batch_size.fitting_batch`). The model predicts its
    domain and trains on ``rows``. For each window, the dense part trains in ``dense_passes``
    passes, in random order, on tables that have not seen it; then the tables train in one more
    pass, in order of time. 0: one pass trains both. ``candidates`` are the scores of candidates to
    train on.
    """

    reader: WindowReader
    batch_size: int
    domain: int | None = None
    scores: ScoreJoin | None = None
    rows: Rows = "own"
    fits_windows: bool = False
    dense_passes: int = 0
    candidates: ScoreJoin | None = None

    def batch_of(self, window: Window) -> int:
        """Examples per step when training on ``window``."""
        if not self.fits_windows:
            return self.batch_size
        rows = self.reader.rows(window, self.domain if self.rows == "own" else None)
        return fitting_batch(rows, self.batch_size)

    @property
    def parts(self) -> list[Part]:
        """The part of the model that trains in each pass over a window."""
        if self.dense_passes == 0:
            return ["all"]
        return [*repeat("dense", self.dense_passes), "tables"]

    def predicted(self, first_window: int = 0) -> int:
        """Number of examples in all windows from ``first_window`` on."""
        return sum(
            self.reader.rows(window, self.domain) for window in self.reader.windows[first_window:]
        )

    def examples(self, history: Sequence[Mapping[str, Any]] = ()) -> int:
        """Upper bound on the examples predicted plus those of every training pass; for windows in
        ``history``, counts come from its metrics instead of the data."""
        predicted = sum(row["rows"] for row in history) + self.predicted(len(history))
        trained = predicted
        if self.rows != "own":
            trained = sum(window.rows for window in self.reader.windows)
        if self.candidates is not None:
            trained += sum(self.reader.candidate_rows(window) for window in self.reader.windows)
        return predicted + len(self.parts) * trained

    def taught(self, window: Window) -> pl.DataFrame:
        """The examples to train on in ``window``, in label time."""
        return self.reader.label_examples(
            window, self.domain, self.scores, self.rows, self.candidates
        )


class WindowDiagnostics(Protocol):
    """Further facts about a window, besides the metrics of its predictions."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over this rank's share of a batch: scalars by name, on its device."""
        ...

    def summary(
        self, engine: Engine, counts: dict[str, float], probe: Batch | None
    ) -> dict[str, Any]:
        """Entries for the window's metrics; collective, the same on every rank.

        Args:
            counts: means over ranks of the sums over the window.
            probe: this rank's share of the window's middle batch; None in a window without labels.
        """
        ...


def predict_then_train(
    engine: Engine,
    loss_function: LossFunction,
    data: DataView,
    output_dir: Path,
    progress: RowProgress,
    after_window: Callable[[Window, list[dict[str, Any]]], None] | None = None,
    checkpoints: Checkpoints | None = None,
    diagnostics: WindowDiagnostics | None = None,
    live: Path | None = None,
) -> list[dict[str, Any]]:
    """Predict and train ``engine`` over all windows; called by every rank.

    Writes predictions/<window>.parquet and metrics.json to ``output_dir``; metrics of a further
    task end in its name (ne_<task>). Each window advances ``progress`` by its examples once for
    prediction and once per training pass. With ``checkpoints`` it resumes from the last one, in the
    ``output_dir`` of the run that wrote it.

    Args:
        loss_function: maps outputs and batch to a loss [B].
        after_window: called on every rank after training on a window, with the metrics of all
            windows so far.
        diagnostics: adds to each window's metrics after training on it; reads the window's labels
            once more.
        live: a file to which each window's metrics are appended as soon as they are known, with
            examples per second and learning rates.

    Returns:
        Metrics of each window, as in metrics.json; the same on every rank.
    """
    if ranks.rank() == 0:
        (output_dir / PREDICTIONS_DIR).mkdir(parents=True, exist_ok=True)
    position = Position() if checkpoints is None else checkpoints.restore(engine)
    progress.advance(max(position.progress_rows - progress.rows, 0))
    history = list(position.history)
    live = live if ranks.rank() == 0 else None
    for index, row in enumerate(history):
        note_live(live, index, row)
    for index, window in enumerate(data.reader.windows[position.window :], start=position.window):
        position = replace(position, window=index)
        if position.batches == 0:
            measured = _predict_window(engine, window, data, output_dir, progress)
            position = replace(position, measured=measured)
            note_live(live, index, measured)
        begun, rows_before = time.monotonic(), progress.rows
        position = train(
            engine, loss_function, window, data, progress, position, checkpoints, diagnostics
        )
        train_loss = ranks.means([position.loss])[0] / position.rows if position.rows else None
        skipped = _skipped(engine, history)
        found = (
            {} if diagnostics is None else _diagnose(diagnostics, engine, window, data, position)
        )
        history.append(
            {
                "window": window.name,
                **position.measured,
                "train_loss": train_loss,
                **skipped,
                **found,
            }
        )
        speed = (progress.rows - rows_before) / max(time.monotonic() - begun, 1e-6)
        note_live(live, index, history[-1] | _rates(engine) | {"examples_per_second": speed})
        if after_window is not None:
            after_window(window, history)
        position = Position(window=index + 1, history=list(history), progress_rows=progress.rows)
        if checkpoints is not None:
            checkpoints.save(engine, position)
    if ranks.rank() == 0:
        write_json(output_dir / METRICS_FILE, {"windows": history})
    return history


def _rates(engine: Engine) -> dict[str, float]:
    """The learning rates of the next step, by part of the model."""
    settings = engine.settings
    factor = rate_factor(engine.steps, settings.schedule)
    return {
        "learning_rate": factor * settings.dense_learning_rate,
        "table_learning_rate": factor * settings.table_learning_rate,
    }


def _skipped(engine: Engine, history: list[dict[str, Any]]) -> dict[str, int]:
    """{"skipped_batches": number of them in the window after ``history``}; empty if there are
    none."""
    skipped = engine.skipped_batches - sum(row.get(SKIPPED, 0) for row in history)
    return {SKIPPED: skipped} if skipped else {}


def _diagnose(
    diagnostics: WindowDiagnostics,
    engine: Engine,
    window: Window,
    data: DataView,
    position: Position,
) -> dict[str, Any]:
    names = sorted(position.counts)
    means = ranks.means([position.counts[name] for name in names])
    middle = position.batches // len(data.parts) // 2
    probe = next(_batches(data, window, data.taught(window), middle), None)
    return diagnostics.summary(engine, dict(zip(names, means, strict=True)), probe)


def _batches(
    data: DataView, window: Window, taught: pl.DataFrame, first_batch: int = 0
) -> Iterator[Batch]:
    return data.reader.batches(
        taught, data.batch_of(window), ranks.rank(), ranks.world_size(), first_batch
    )


def _predict_window(
    engine: Engine, window: Window, data: DataView, output_dir: Path, progress: RowProgress
) -> dict[str, Any]:
    """Predict a window and write the predictions; returns their metrics, the same on every rank."""
    batches = data.reader.event_batches(
        window, data.batch_size, ranks.rank(), ranks.world_size(), domain=data.domain
    )
    tasks, weighted = data.reader.schema.tasks, data.reader.schema.mean_weight is not None
    predictions = predict(engine, batches, progress, tasks, weighted)
    measured: dict[str, Any] = {}
    if predictions is not None:
        path = output_dir / PREDICTIONS_DIR / f"{window.name}.parquet"
        data.reader.as_stored(predictions).write_parquet(path)
        measured = measure(predictions, tasks)
    return ranks.broadcast(measured)


def predict(
    engine: Engine,
    batches: Iterable[Batch],
    progress: RowProgress,
    tasks: Sequence[str] = (MAIN_TASK,),
    weighted: bool = False,
) -> pl.DataFrame | None:
    """Predict ``batches``; returns every rank's real rows, sorted by (event_time, example_id), on
    rank 0, and None elsewhere.

    Each of ``tasks`` after the first has columns label_<task> (NaN where unknown) and logit_<task>;
    ``weighted`` rows have a weight.
    """
    weight = [WEIGHT] if weighted else []
    own = [*(name for name in PREDICTION_SCHEMA if name != "logit"), *weight]
    further = [*task_columns("label", tasks)[1:], *task_columns("logit", tasks)[1:], *weight]
    schema = PREDICTION_SCHEMA | dict.fromkeys(further, pl.Float32)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in schema}
    with closing(load_ahead(engine, batches)) as ahead:
        for batch in ahead:
            tensors = {name: getattr(batch, name) for name in own}
            outputs = engine.outputs(batch)
            tensors["logit"] = outputs[SERVING]  # [B]
            for task in tasks[1:]:
                tensors |= {
                    f"label_{task}": batch.further_labels[task],
                    f"logit_{task}": outputs[task],
                }
            real = batch.weight > 0  # [B]
            is_whole = bool(real.all())  # as for every batch of a single rank: nothing to select
            for name, value in tensors.items():
                columns[name].append((value if is_whole else value[real]).cpu().numpy())
            progress.advance(batch.global_rows)
    gathered = ranks.gather(
        {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in columns.items()}
    )
    if ranks.rank() != 0:
        return None
    frames = [pl.DataFrame(shard).cast(schema) for shard in gathered]  # type: ignore[arg-type]
    return pl.concat(frames).sort("event_time", "example_id")


def train(
    engine: Engine,
    loss_function: LossFunction,
    window: Window,
    data: DataView,
    progress: RowProgress,
    position: Position,
    checkpoints: Checkpoints | None = None,
    diagnostics: WindowDiagnostics | None = None,
) -> Position:
    """Train on the examples whose label became known in ``window``, after skipping
    ``position.batches`` batches.

    Returns:
        The position after its last batch, with this rank's loss sum and all ranks' rows, both for
        the last pass.
    """
    taught, parts = data.taught(window), data.parts
    each = -(-taught.height // data.batch_of(window))  # batches per pass
    # An example counts the same in AdaGrad's sums whatever its window's batch size
    share = data.batch_of(window) / data.batch_size

    def loss_of_share(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        return loss_function(outputs, batch) * share

    scaled = loss_function if share == 1 else loss_of_share
    for place in range(position.batches // each if each else len(parts), len(parts)):
        is_last = place == len(parts) - 1
        shown = taught
        if not is_last:
            order = np.random.default_rng([position.window, place]).permutation(taught.height)
            shown = taught[order]
        batches = _batches(data, window, shown, position.batches - place * each)
        seen: deque[_Seen] = deque()  # batches not yet included in the position's sums
        try:
            with (
                engine.learning(parts[place]),
                closing(load_ahead(engine, batches)) as ahead,
                closing(train_batches(engine, ahead, scaled)) as steps,
            ):
                for batch, loss in steps:
                    progress.advance(batch.global_rows)
                    position = replace(
                        position, batches=position.batches + 1, progress_rows=progress.rows
                    )
                    if is_last:
                        seen.append(_Seen.of(batch, loss, diagnostics))
                    is_due = checkpoints is not None and checkpoints.due(position.batches)
                    while len(seen) > (0 if is_due else STEPS_BEHIND):
                        position = _counted(position, seen.popleft(), share)
                    if checkpoints is not None and is_due:
                        checkpoints.save(engine, position)
        except NonFiniteError as error:
            dense = [feature_name(column) for column in data.reader.schema.dense]
            raise error.located(window.name, dense) from None
        for one in seen:
            position = _counted(position, one, share)
    return position


@dataclass(frozen=True)
class _Seen:
    """A batch of the last pass whose numbers are still on the device."""

    rows: int
    loss: StepLoss
    counts: dict[str, Late]

    @classmethod
    def of(cls, batch: Batch, loss: StepLoss, diagnostics: WindowDiagnostics | None) -> Self:
        found = {} if diagnostics is None else diagnostics.counts(batch)
        return cls(batch.global_rows, loss, {name: Late(n.view(1)) for name, n in found.items()})


def _counted(position: Position, seen: _Seen, share: float) -> Position:
    """``position`` with a batch added to its sums; a loss of NaN means that it was skipped."""
    counts = {
        name: position.counts.get(name, 0.0) + float(late.read()[0])
        for name, late in seen.counts.items()
    }
    loss = float(seen.loss) / share
    trained = 0 if math.isnan(loss) else seen.rows
    return replace(
        position,
        loss=position.loss + (loss * trained if trained else 0.0),
        rows=position.rows + trained,
        counts=counts or position.counts,
    )
