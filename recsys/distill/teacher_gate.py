"""The teacher gate: students ignore the teacher's scores where it predicts worse than they do."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.loader import WindowReader
from recsys.data.schema import Window, window_parts
from recsys.distill.score_log import ScoreLog, score_name
from recsys.evaluation.metrics import row_losses
from recsys.evaluation.predictions import PREDICTIONS_DIR

GATE_FILE = "gate.json"


@dataclass(frozen=True)
class Verdict:
    """How the teacher did in the windows before one window.

    Attributes:
        window: the window whose scores are judged.
        rows: examples predicted by both, with labels known before the window.
        teacher: the teacher's mean log loss over them; None if there are none.
        student: the student's mean log loss.
        teaches: whether students train on the window's scores.
    """

    window: str
    rows: int
    teacher: float | None
    student: float | None
    teaches: bool


class GatedScores:
    """A score log as seen by one student: without the scores of windows before which its own
    predictions were better than the teacher's.

    A window's scores are judged on the examples of the ``windows`` before it whose labels were
    known at its start. They are left out if the teacher's log loss on the main task was larger than
    the student's by more than ``deviations`` standard errors of the paired difference. The verdict
    uses nothing from the window itself, and is the same after a restart.

    Args:
        log: the score log, read on every rank.
        reader: a reader for the student's tasks.
        output_dir: folder with the student's predictions for all windows before the judged one.
    """

    def __init__(
        self,
        log: ScoreLog,
        reader: WindowReader,
        output_dir: Path,
        windows: int,
        deviations: float,
    ) -> None:
        self._log, self._reader, self._output_dir = log, reader, output_dir
        self._windows, self._deviations = windows, deviations
        self._losses: dict[str, NDArray[np.float64]] = {}  # by window, the newest few
        self._verdicts: dict[str, Verdict] = {}

    def join(self, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        """As :meth:`recsys.distill.score_log.ScoreLog.join`."""
        return self.gated(self._log, frame, window)

    def gated(self, log: ScoreLog, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        """As :meth:`join`, with the scores of ``log``."""
        joined = log.join(frame, window)
        if self.verdict(window).teaches:
            return joined
        new = [name for name in joined.columns if name not in frame.columns]
        return joined.with_columns(pl.lit(None, joined.schema[name]).alias(name) for name in new)

    def verdict(self, window: Window) -> Verdict:
        """Whether students train on the scores of ``window``."""
        if window.name not in self._verdicts:  # late labels ask for a window again
            self._verdicts[window.name] = self._judge(window)
        return self._verdicts[window.name]

    def report(self) -> list[dict[str, Any]]:
        """The verdicts on all windows."""
        return [asdict(self.verdict(window)) for window in self._reader.windows]

    def _judge(self, window: Window) -> Verdict:
        place = self._reader.windows.index(window)
        past = self._reader.windows[max(place - self._windows, 0) : place]
        self._losses = {one.name: self._of_window(one) for one in past}
        known = np.concatenate([np.empty((3, 0)), *self._losses.values()], axis=1)
        known = known[:, known[0] < window.start_ms]
        rows = known.shape[1]
        if rows < 2:
            return Verdict(window.name, rows, None, None, True)
        worse = known[1] - known[2]
        error = float(worse.std(ddof=1)) / math.sqrt(rows)
        teaches = float(worse.mean()) <= self._deviations * error
        return Verdict(window.name, rows, float(known[1].mean()), float(known[2].mean()), teaches)

    def _of_window(self, window: Window) -> NDArray[np.float64]:
        """[3, rows] for the examples that both have predicted: label time, and weighted log loss of
        teacher and student."""
        if window.name in self._losses:
            return self._losses[window.name]
        label, logit = self._reader.labels[0], self._reader.logits[0]
        path = self._output_dir / PREDICTIONS_DIR / f"{window.name}.parquet"
        columns = ["example_id", "event_time", "label_time"]
        times = pl.read_parquet(window_parts(self._reader.windows_dir, window), columns=columns)
        weight = self._reader.schema.weight_columns
        own = pl.read_parquet(path, columns=["example_id", label, logit, *weight])
        both = self._log.join(times.join(own, on="example_id"), window)
        score = score_name(logit)
        both = both.filter(pl.col(score).is_finite() & pl.col(label).is_not_nan())
        labels = both[label].to_numpy()
        each = both[weight[0]].to_numpy() if weight else 1.0
        losses = [each * row_losses(both[name].to_numpy(), labels) for name in (score, logit)]
        return np.stack([both["label_time"].to_numpy().astype(np.float64), *losses])


@dataclass(frozen=True)
class GatedCandidates:
    """The scores of candidates, left out in the windows in which ``gate`` leaves out the log's."""

    log: ScoreLog
    gate: GatedScores

    def join(self, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        """As :meth:`recsys.distill.score_log.ScoreLog.join`."""
        return self.gate.gated(self.log, frame, window)


def in_words(verdicts: list[dict[str, Any]]) -> str:
    """A line about the windows in which the teacher was ignored; empty if there were none."""
    closed = [one for one in verdicts if not one["teaches"]]
    if not closed:
        return ""
    last = closed[-1]
    return (
        f"the teacher was worse than the student before {len(closed)} of {len(verdicts)} windows "
        f"and taught it nothing there (before {last['window']}: log loss {last['teacher']:.4f}, "
        f"the student's {last['student']:.4f})"
    )
