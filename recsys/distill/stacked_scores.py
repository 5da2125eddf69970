"""Stacking: one score from several scorers, weighted per domain by their past accuracy.

An example's logit is an offset plus a weighted sum of its scorers' logits. Before each window and
for each domain, weights and offset are fitted by logistic regression to the examples of earlier
windows whose labels are known by then, so nothing looks ahead. No weight is below 0 (Breiman,
Stacked Regressions, 1996): a scorer that adds nothing gets weight 0. The fit uses predictions made
before training on the example, so a scorer cannot gain weight by overfitting.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from recsys.config import InputError
from recsys.data.schema import WEIGHT, Schema, Window
from recsys.distill.augment_settings import (
    WINDOW_START,
    AugmentSettings,
    ExternalSettings,
    StackSettings,
    of_baseline,
)
from recsys.distill.external_scores import (
    LEARNT,
    GivenScores,
    examples_of,
    finish_log,
    log_window,
    new_log,
    read_scores,
    with_own,
    with_scores,
)
from recsys.distill.score_log import ScoreLog
from recsys.evaluation.metrics import row_losses
from recsys.files import file_hash

FORGOTTEN_AFTER = 8  # half-lives; older examples count less than 1/250


@dataclass(frozen=True)
class StackedReport:
    """What was scored, and how: the members' ``weights`` by window and domain, with the offset
    last."""

    members: list[str]
    scored: int
    examples: int
    weights: dict[str, dict[str, list[float]]]

    def lines(self) -> list[str]:
        """Lines for the user, one per fact."""
        found = [
            f"stacked scores: {self.scored:,} of {self.examples:,} examples have a score, from "
            f"{', '.join(self.members)}"
        ]
        window = list(self.weights)[-1]
        for domain, weights in self.weights[window].items():
            shown = ", ".join(
                f"{name} {weight:.2f}" for name, weight in zip(self.members, weights, strict=False)
            )
            found.append(f"stacked scores: weights in {window}, {domain}: {shown}")
        return found


def log_stacked_scores(
    windows_dir: Path,
    settings: AugmentSettings,
    log_dir: Path,
    own: ScoreLog | None,
    baselines_dir: Path,
    project_dir: Path = Path(),
) -> StackedReport:
    """Write the scores of ``settings.stack`` as a new score log ``log_dir``.

    Only the data's main task is stacked; other tasks use the project's teacher. A missing member's
    score is replaced by the mean of the example's other members; without any member there is no
    score. The latest ``learnt_until`` of the scorers counts for the combined score.

    Args:
        own: the scores of the project's teacher, if it is a member.
        baselines_dir: the folder of the baselines.
        project_dir: the folder to which ``external.root`` is relative.

    Raises:
        InputError: as :func:`recsys.distill.external_scores.log_external_scores`.
        LookAheadError: a scorer knew labels from after its example's time.
    """
    schema = Schema.load(windows_dir)
    members = settings.stack.members
    sources = {
        name: settings.external if name == "external" else of_baseline(name, str(baselines_dir))
        for name in members
        if name != "own"
    }
    for name, source in sources.items():
        if source.task not in (None, schema.tasks[0]):
            raise InputError(
                f"{source.where('task')}: {name} scores {source.task!r}; the data's main task, "
                f"{schema.tasks[0]!r}, is stacked"
            )
    given = {
        name: read_scores(source, project_dir if name == "external" else Path())
        for name, source in sources.items()
    }
    past = [_Past(settings.stack) for _ in schema.domains]
    weights: dict[str, dict[str, list[float]]] = {}
    scored = 0
    with new_log(log_dir, schema) as log:
        for index, window in enumerate(schema.windows):
            examples = examples_of(windows_dir, window, ["label", *schema.weight_columns])
            table, logits = _gathered(
                examples, window, log, own, given, sources, index == 0, members
            )
            domain = table["domain"].to_numpy()
            stacked = np.full(table.height, np.nan)
            fitted: dict[str, list[float]] = {}
            for place, (name, known) in enumerate(zip(schema.domains, past, strict=True)):
                of_domain = domain == place
                found = known.weights(len(members), window, index)
                stacked[of_domain] = logits[of_domain] @ found[:-1] + found[-1]
                known.add(logits[of_domain], table.filter(pl.Series(of_domain)), index)
                fitted[name] = found.tolist()
            weights[window.name] = fitted
            main = pl.Series("logit", stacked, dtype=pl.Float32)
            has_score = main.is_finite()
            table = table.with_columns(
                main.set(~has_score, None), pl.when(has_score).then(LEARNT).alias(LEARNT)
            )
            scored += log_window(log, window, table, own, settings, schema)
        facts = {
            "stacked": settings.stack.model_dump(),
            "read": settings.external.model_dump() if "external" in members else None,
            "files": {
                name: {path.name: file_hash(path) for path in one.files}
                for name, one in given.items()
            },
            "weights": weights,
        }
        finish_log(log, windows_dir, facts, own, settings)
    rows = sum(window.rows for window in schema.windows)
    return StackedReport(list(members), scored, rows, weights)


def fit_weights(
    logits: NDArray[np.floating],
    labels: NDArray[np.floating],
    counted: NDArray[np.floating],
    prior_strength: float,
) -> NDArray[np.float64]:
    """[M + 1]: the non-negative weights of M scorers, and the offset.

    They minimise the log loss summed over N examples, each counted ``counted`` [N] times, plus half
    of ``prior_strength`` times the squared distance from equal weights and no offset.

    Args:
        logits: [N, M], the scorers' logits.
        labels: [N], 0 or 1.
    """
    scorers = logits.shape[1]
    inputs = np.column_stack([logits, np.ones(len(logits))])
    prior = np.append(np.full(scorers, 1.0 / scorers), 0.0)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        found = inputs @ weights
        apart = weights - prior
        losses = row_losses(found, labels)
        gradient = inputs.T @ (counted * (expit(found) - labels)) + prior_strength * apart
        return float(counted @ losses + 0.5 * prior_strength * (apart @ apart)), gradient

    bounds = [(0.0, None)] * scorers + [(None, None)]
    return minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=bounds).x


@dataclass(frozen=True)
class _Known:
    """The members' logits [N, M] for one window's examples in a domain, and the outcomes."""

    index: int
    logits: NDArray[np.float64]
    labels: NDArray[np.float32]
    label_times: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass
class _Past:
    """A domain's examples from the newest windows that have the logits of all members."""

    settings: StackSettings
    _windows: list[_Known] = field(default_factory=list)

    def add(self, logits: NDArray[np.float64], examples: pl.DataFrame, index: int) -> None:
        """Keep the [N, M] ``logits`` of N ``examples`` of the ``index``-th window."""
        usable = np.isfinite(logits).all(axis=1) & np.isfinite(examples["label"].to_numpy())
        labels, times = (examples[name].to_numpy()[usable] for name in ("label", "label_time"))
        weights = np.ones_like(labels)
        if WEIGHT in examples.columns:
            weights = examples[WEIGHT].to_numpy()[usable]
        self._windows.append(_Known(index, logits[usable], labels, times, weights))
        oldest = index - FORGOTTEN_AFTER * self.settings.half_life_windows
        rows = sum(len(one.labels) for one in self._windows[1:])
        while self._windows[0].index < oldest or (
            len(self._windows) > 1 and rows >= self.settings.max_rows
        ):
            del self._windows[0]
            rows -= len(self._windows[0].labels)

    def weights(self, members: int, window: Window, index: int) -> NDArray[np.float64]:
        """The members' weights in the ``index``-th ``window``, with the offset last; equal weights
        at first."""
        logits, counted = [np.zeros((0, members))], [np.zeros(0)]
        labels: list[NDArray[np.floating]] = [np.zeros(0)]
        for one in self._windows:
            known = one.label_times < window.start_ms
            logits.append(one.logits[known])
            labels.append(one.labels[known])
            weight = 0.5 ** ((index - one.index) / self.settings.half_life_windows)
            counted.append(weight * one.weights[known].astype(np.float64))
        newest = slice(-self.settings.max_rows, None)
        return fit_weights(
            np.concatenate(logits)[newest],
            np.concatenate(labels)[newest],
            np.concatenate(counted)[newest],
            self.settings.prior_strength,
        )


def _gathered(
    examples: pl.DataFrame,
    window: Window,
    log: ScoreLog,
    own: ScoreLog | None,
    given: dict[str, GivenScores],
    sources: dict[str, ExternalSettings],
    is_first: bool,
    members: Sequence[str],
) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """``examples`` with the columns ``log.logits`` and ``learnt_until``, and the members' logits
    [N, M], where a missing one is the mean of the others, or NaN if there is none."""
    found: dict[str, NDArray[np.float64]] = {}
    table = examples.with_columns(pl.lit(None, dtype=pl.Int64).alias(LEARNT))
    for name, scores in given.items():
        joined = with_scores(scores, examples, window, sources[name])
        known = joined["logit"].is_not_null()
        if is_first and sources[name].learnt_until == WINDOW_START:
            known = known & False  # nothing was trained before it
        mark = joined[LEARNT].set(~known, None)
        table = table.with_columns(pl.max_horizontal(LEARNT, mark).alias(LEARNT))
        found[name] = joined["logit"].set(~known, None).cast(pl.Float64).to_numpy()
    if own is None:
        none = pl.lit(None, dtype=pl.Float32)
        table = table.with_columns(none.alias(name) for name in log.logits)
    else:
        table = with_own(table, own, window)
        found["own"] = table["logit"].cast(pl.Float64).to_numpy()
    logits = np.column_stack([found[name] for name in members])
    has_any = np.isfinite(logits).any(axis=1)
    mean = np.full(len(logits), np.nan)
    mean[has_any] = np.nanmean(logits[has_any], axis=1)
    return table, np.where(np.isfinite(logits), logits, mean[:, None])
