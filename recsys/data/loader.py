"""Batches of a windows folder, in event time (to predict) and in label time (to train)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recsys.data.encoding import dense_values
from recsys.data.rows import Rows
from recsys.data.schema import CANDIDATES_DIR, WEIGHT, Schema, Window, task_columns, window_parts

META_COLUMNS = ["example_id", "event_time", "label_time", "domain", "group"]


@dataclass
class Batch(Pipelineable):
    """One rank's share of a global batch; B rows, the same number on every rank.

    Attributes:
        dense: [B, schema.dense_width] float32: the values (missing as 0), the missing indicators,
            and the domain as one-hot.
        sparse: ids int64 of every categorical feature, keys in the order of ``schema.categorical``.
        label: [B] float32 in {0, 1}, of the main task; NaN where unknown.
        weight: [B] float32: a row's weight divided by the mean weight of the log's first window, or
            1 if the log has no weights; 0 for padding.
        domain: [B] int64, index in ``schema.domains``.
        group: [B] int64.
        example_id: [B] int64.
        event_time: [B] int64, ms since the epoch.
        score: [B] float32, the teacher's logit for the main task; NaN where there is none.
        staleness_ms: [B] int64, event_time minus the scoring snapshot's high-water mark; 0 where
            there is no score.
        global_rows: real rows of the global batch over all ranks.
        further_labels: as ``label``, for each further task by name.
        further_scores: as ``score``, for each further task by name.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    label: Tensor
    weight: Tensor
    domain: Tensor
    group: Tensor
    example_id: Tensor
    event_time: Tensor
    score: Tensor
    staleness_ms: Tensor
    global_rows: int
    further_labels: dict[str, Tensor] = field(default_factory=dict)
    further_scores: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device, non_blocking: bool = True) -> "Batch":
        """The same batch on ``device``."""
        if device.type != "cpu":
            # TorchRec asks for these at each step; computed here, they need no wait
            self.sparse.offset_per_key()
        return replace(self, **self._each(lambda part: part.to(device, non_blocking=non_blocking)))

    def pinned(self) -> "Batch":
        """The same batch in pinned memory, from which a GPU can copy while the host continues."""
        return replace(self, **self._each(lambda part: part.pin_memory()))

    def record_stream(self, stream: Any) -> None:
        """Keep the memory allocated until ``stream`` has used it."""
        self._each(lambda part: part.record_stream(stream))

    def of_task(self, task: str) -> "Batch":
        """The same batch with the further ``task`` as its only task."""
        label, score = self.further_labels[task], self.further_scores[task]
        return replace(self, label=label, score=score, further_labels={}, further_scores={})

    def _each(self, function: Callable[[Any], Any]) -> dict[str, Any]:
        """``function`` applied to every tensor, by attribute."""
        found: dict[str, Any] = {}
        for name in (one.name for one in fields(self) if one.name != "global_rows"):
            value = getattr(self, name)
            found[name] = (
                {k: function(v) for k, v in value.items()}
                if isinstance(value, dict)
                else function(value)
            )
        return found


class ScoreJoin(Protocol):
    """A log of teacher scores that can be joined to examples."""

    def join(self, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        """``frame``, examples of ``window``, with ``score`` (``score_<task>``) and ``staleness_ms``
        added.

        They are null where an example has no score in time. :attr:`WindowReader.logits` names the
        logit columns that become scores.
        """
        ...


class WindowReader:
    """Reads a windows folder as written by :func:`recsys.data.ingest.ingest`.

    ``batch_size`` is global everywhere: which rows form a global batch, and their order, does not
    depend on the number of ranks. A rank takes a contiguous share of ceil(rows / world_size) rows.

    Args:
        tasks: the tasks whose labels and scores are read, the main one first; None: all tasks of
            the data. ``schema`` is then the schema of a model of these tasks, ``labels`` their
            columns in data and predictions, ``logits`` their columns in predictions and score logs.
        first_windows: read only this many windows; None: all.

    Raises:
        InputError: the folder has no schema, or the data lack a task.
    """

    def __init__(
        self, windows_dir: Path, tasks: list[str] | None = None, first_windows: int | None = None
    ) -> None:
        self.windows_dir = windows_dir
        stored = Schema.load(windows_dir)
        self.schema = stored if tasks is None else stored.for_tasks(tasks)
        self.windows: list[Window] = self.schema.windows[:first_windows]
        self.labels = stored.columns("label", self.schema.tasks)
        self.logits = stored.columns("logit", self.schema.tasks)
        self._names = self._renaming(stored, "label") | self._renaming(stored, "score")
        self._stored_names = {
            new: old
            for base in ("label", "logit")
            for old, new in self._renaming(stored, base).items()
        }
        standards = self.schema.standards()
        self._standards = dict(zip((w.name for w in self.windows), standards, strict=False))
        features = self.schema.dense + [feature.name for feature in self.schema.categorical]
        self._columns = META_COLUMNS + self.schema.weight_columns + self.labels + features
        self._counted: dict[tuple[str, int], int] = {}  # rows by window and domain

    def rows(self, window: Window, domain: int | None = None) -> int:
        """Number of examples whose event is in ``window`` (of one domain, if given)."""
        if domain is None:
            return window.rows
        key = window.name, domain
        if key not in self._counted:
            scan = pl.scan_parquet(self._parts(window)).filter(pl.col("domain") == domain)
            self._counted[key] = scan.select(pl.len()).collect().item()
        return self._counted[key]

    def event_batches(
        self,
        window: Window,
        batch_size: int,
        rank: int,
        world_size: int,
        domain: int | None = None,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """Batches of the examples whose event is in ``window``, in event time, from ``first_batch``
        on; keeps one part in memory."""
        rest: pl.DataFrame | None = None
        skip = first_batch * batch_size
        for part in self._parts(window):
            read = _of_domain(pl.read_parquet(part, columns=self._columns), domain)
            frame = self._standardised(read, window).rename(self._names, strict=False)
            frame = frame if rest is None else pl.concat([rest, frame])
            skipped = min(skip, frame.height)
            frame, skip = frame[skipped:], skip - skipped
            whole = frame.height - frame.height % batch_size
            yield from self.batches(frame[:whole], batch_size, rank, world_size)
            rest = frame[whole:]
        if rest is not None:
            yield from self.batches(rest, batch_size, rank, world_size)

    def label_batches(
        self,
        window: Window,
        batch_size: int,
        rank: int,
        world_size: int,
        domain: int | None = None,
        scores: ScoreJoin | None = None,
        rows: Rows = "own",
        candidates: ScoreJoin | None = None,
    ) -> Iterator[Batch]:
        """Batches of :meth:`label_examples`, in label time."""
        examples = self.label_examples(window, domain, scores, rows, candidates)
        yield from self.batches(examples, batch_size, rank, world_size)

    def label_examples(
        self,
        window: Window,
        domain: int | None = None,
        scores: ScoreJoin | None = None,
        rows: Rows = "own",
        candidates: ScoreJoin | None = None,
    ) -> pl.DataFrame:
        """The examples whose label became known during ``window``, in label time.

        They may come from earlier windows. Over all windows, every example whose label is known by
        the end of the last one occurs exactly once. With ``rows`` other than ``own``, examples
        outside ``domain`` are included; with ``scores_elsewhere`` these have no labels, and those
        without a score are left out.

        With ``candidates``, their scores, the candidates of ``window`` that have a score are
        included, without labels; those outside ``domain`` only with ``rows`` other than ``own``.

        Raises:
            InputError: ``scores`` lacks a needed window, or is wrong.
        """
        position = self.windows.index(window)
        low = window.start_ms if position == 0 else self.windows[position - 1].end_ms
        frames = []
        for source in self.windows[: position + 1]:
            if source.end_ms + source.max_label_delay_ms <= low:
                continue
            scan = pl.scan_parquet(self._parts(source)).select(self._columns)
            frame = scan.filter(
                (pl.col("label_time") >= low) & (pl.col("label_time") < window.end_ms)
            ).collect()
            own = _of_domain(frame, domain if rows == "own" else None)
            frame = self._standardised(own, source)
            frames.append(frame if scores is None else scores.join(frame, source))
        if candidates is not None:
            frames.append(self._candidates(window, domain if rows == "own" else None, candidates))
        ordered = (
            pl.concat(frames).rename(self._names, strict=False).sort("label_time", "example_id")
        )
        if scores is not None:  # once per window: in each batch it costs more than the join
            names = pl.col(task_columns("score", self.schema.tasks))
            ordered = ordered.with_columns(
                names.fill_null(float("nan")), pl.col("staleness_ms").fill_null(0)
            )
        if rows == "scores_elsewhere":
            assert scores is not None, "rows without labels and scores teach nothing"
            ordered = self._with_labels_of(ordered, domain)
        return ordered

    def candidate_rows(self, window: Window) -> int:
        """Number of candidates in ``window``."""
        return sum(pq.read_metadata(one).num_rows for one in self._candidate_parts(window))

    def _candidate_parts(self, window: Window) -> list[Path]:
        return window_parts(self.windows_dir / CANDIDATES_DIR, window)

    def _candidates(
        self, window: Window, domain: int | None, candidates: ScoreJoin
    ) -> pl.DataFrame:
        """The window's candidates (of one domain, if given) that have a score."""
        parts = [
            _of_domain(pl.read_parquet(one, columns=self._columns), domain)
            for one in self._candidate_parts(window)
        ]
        none = pl.read_parquet(self._parts(window)[0], columns=self._columns, n_rows=0)
        frame = self._standardised(pl.concat([none, *parts]), window)
        joined = candidates.join(frame, window)
        unknown = pl.lit(float("nan"), dtype=pl.Float32)
        return joined.filter(pl.col("staleness_ms").is_not_null()).with_columns(
            unknown.alias(name) for name in self.labels
        )

    def _with_labels_of(self, frame: pl.DataFrame, domain: int | None) -> pl.DataFrame:
        """``frame`` with labels for ``domain`` only, and without other domains' examples that have
        no score."""
        own = pl.col("domain") == domain
        labels, scores = (
            pl.col(task_columns(base, self.schema.tasks)) for base in ("label", "score")
        )
        taught = frame.filter(own | pl.any_horizontal(scores.is_not_nan()))
        unknown = pl.lit(float("nan"), dtype=pl.Float32)
        return taught.with_columns(pl.when(own).then(labels).otherwise(unknown))

    def as_stored(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """``predictions`` with labels and logits under the names that they have when all tasks are
        predicted."""
        return predictions.rename(self._stored_names, strict=False)

    def _renaming(self, stored: Schema, base: str) -> dict[str, str]:
        """Columns of the data that have another name in this reader's batches."""
        tasks = self.schema.tasks
        pairs = zip(stored.columns(base, tasks), task_columns(base, tasks), strict=True)
        return {old: new for old, new in pairs if old != new}

    def _standardised(self, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        """Examples of ``window`` with dense features standardised as for a model at that time."""
        standard = self._standards.get(window.name)
        return frame if standard is None else standard.apply(frame, self.schema.dense)

    def _parts(self, window: Window) -> list[Path]:
        return window_parts(self.windows_dir, window)

    def batches(
        self,
        frame: pl.DataFrame,
        batch_size: int,
        rank: int,
        world_size: int,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """This rank's shares of the batches of ``frame``, in its order, from ``first_batch`` on."""
        for start in range(first_batch * batch_size, frame.height, batch_size):
            global_rows = min(batch_size, frame.height - start)
            share = -(-global_rows // world_size)
            places = np.arange(rank * share, (rank + 1) * share)
            real = places < global_rows
            if real.all():  # a slice copies nothing
                share_of_rank = frame.slice(start + rank * share, share)
            else:
                share_of_rank = frame[start + np.where(real, places, 0)]
            yield batch_of(share_of_rank, self.schema, real.astype(np.float32), global_rows)


def batch_of(frame: pl.DataFrame, schema: Schema, weight: np.ndarray, global_rows: int) -> Batch:
    """``frame``'s rows as tensors.

    Args:
        frame: B rows with the columns of a part, those of ``schema.tasks`` in its order, and
            ``score`` (``score_<task>``; NaN where an example has none) and ``staleness_ms`` if
            there are teacher scores.
        weight: [B] float32 factors for the rows' own weights.
    """
    if schema.mean_weight is not None:
        weight = weight * (frame[WEIGHT].to_numpy() / np.float32(schema.mean_weight))
    values = dense_values(frame, schema.dense)
    missing = np.isnan(values)
    domain = _tensor(frame["domain"], np.int64)
    in_domain = np.eye(len(schema.domains), dtype=np.float32)[domain.numpy()]
    dense = np.concatenate(
        [np.where(missing, 0.0, values), missing, in_domain], axis=1, dtype=np.float32
    )
    has_scores = "score" in frame.columns
    labels = {
        name: _tensor(frame[name], np.float32) for name in task_columns("label", schema.tasks)
    }
    scores = {
        name: _tensor(frame[name], np.float32)
        if has_scores
        else torch.full((frame.height,), float("nan"))
        for name in task_columns("score", schema.tasks)
    }
    return Batch(
        dense=torch.from_numpy(dense),  # [B, 2 * dense features + domains]
        sparse=_sparse(frame, schema),
        label=labels["label"],
        weight=torch.from_numpy(weight),
        domain=domain,
        group=_tensor(frame["group"], np.int64),
        example_id=_tensor(frame["example_id"], np.int64),
        event_time=_tensor(frame["event_time"], np.int64),
        score=scores["score"],
        staleness_ms=_tensor(frame["staleness_ms"], np.int64)
        if has_scores
        else torch.zeros(frame.height, dtype=torch.int64),
        global_rows=global_rows,
        further_labels={task: labels[f"label_{task}"] for task in schema.tasks[1:]},
        further_scores={task: scores[f"score_{task}"] for task in schema.tasks[1:]},
    )


def _sparse(frame: pl.DataFrame, schema: Schema) -> KeyedJaggedTensor:
    values, lengths = [], []
    for feature in schema.categorical:
        column = frame[feature.name]
        if feature.kind == "list":
            length = column.list.len().fill_null(0)
            values.append(_tensor(column.filter(length > 0).explode(), np.int64))
            lengths.append(_tensor(length, np.int64))
        else:
            values.append(_tensor(column, np.int64))
            lengths.append(torch.ones(frame.height, dtype=torch.int64))
    keys = [feature.name for feature in schema.categorical]
    return KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths))


def _tensor(column: pl.Series, dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(column.to_numpy(), dtype=dtype))


def _of_domain(frame: pl.DataFrame, domain: int | None) -> pl.DataFrame:
    return frame if domain is None else frame.filter(pl.col("domain") == domain)
