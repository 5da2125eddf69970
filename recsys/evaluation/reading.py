"""Read a student's predictions together with every other model's on the same rows."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.schema import WEIGHT, Schema, Window
from recsys.evaluation.metrics import METRICS, compute_metrics
from recsys.evaluation.model_table import BASELINES, DISTILLED, ORACLE, PLAIN, SCORERS, TEACHER
from recsys.evaluation.predictions import PREDICTIONS_DIR

SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Predictions:
    """A student's rows over all windows, with each model's logits [N]; arms have one array per
    seed.

    ``event_time`` is in ms since 1970; ``seen`` is as in
    :func:`recsys.evaluation.coldness.rows_seen`, with -1 where unknown. ``weights`` are the rows'
    weights; None if the log has none.
    """

    window: NDArray[np.integer]
    labels: NDArray[np.floating]
    groups: NDArray[np.integer]
    domain: NDArray[np.integer]
    event_time: NDArray[np.integer]
    seen: NDArray[np.integer]
    logits: dict[str, list[NDArray[np.floating]]]
    weights: NDArray[np.floating] | None = None

    def select(self, mask: NDArray[np.bool_]) -> "Predictions":
        """The rows where ``mask`` [N] is true."""
        logits = {model: [one[mask] for one in seeds] for model, seeds in self.logits.items()}
        columns = {
            one.name: getattr(self, one.name)[mask]
            for one in fields(self)
            if one.name != "logits" and getattr(self, one.name) is not None
        }
        return replace(self, logits=logits, **columns)

    def metrics(self, pool: ThreadPoolExecutor) -> dict[str, list[dict[str, float]]]:
        """Each model's metrics, one dict per seed."""
        each = [(model, one) for model, seeds in self.logits.items() for one in seeds]
        found = pool.map(
            lambda one: compute_metrics(one[1], self.labels, self.groups, self.weights), each
        )
        values: dict[str, list[dict[str, float]]] = {model: [] for model in self.logits}
        for (model, _), one in zip(each, found, strict=True):
            values[model].append(one.as_dict())
        return values


def over_seeds(values: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over seeds."""
    return {name: float(np.mean([one[name] for one in values])) for name in METRICS}


def common_arms(students_dir: Path, students: list[str]) -> list[str]:
    """The arms besides plain, which must be the same for every student; distilled first."""
    found = {
        student: sorted(path.name for path in (students_dir / student).glob("*/"))
        for student in students
    }
    arms = found[students[0]]
    for student, own in found.items():
        if own != arms:
            raise InputError(
                f"{students_dir / student}: arms {own} differ from {arms}; train the students again"
            )
    compared = sorted(
        (arm for arm in arms if arm != PLAIN), key=lambda arm: (arm != DISTILLED, arm)
    )
    if not compared:
        raise InputError(
            f"{students_dir}: no arm but {PLAIN}; give the students another and train them again"
        )
    return compared


def common_seeds(students_dir: Path, students: list[str], arms: list[str]) -> list[int]:
    """The seeds that every student has in every arm."""
    found = {
        (student, arm): sorted(
            int(path.name.removeprefix("seed-"))
            for path in (students_dir / student / arm).glob("seed-*")
        )
        for student in students
        for arm in (PLAIN, *arms)
    }
    seeds = found[students[0], PLAIN]
    for (student, arm), own in found.items():
        if own != seeds or not own:
            raise InputError(
                f"{students_dir / student / arm}: seeds {own} differ from {seeds}; train the "
                f"students again"
            )
    return seeds


def tasks_of(schema: Schema, model_dir: Path) -> list[str]:
    """The tasks that a model has predicted, in the order of its columns, the main one first."""
    by_column = dict(zip(schema.columns("logit", schema.tasks), schema.tasks, strict=True))
    path = _window_file(model_dir, schema.windows[0])
    return [by_column[name] for name in pl.read_parquet_schema(path) if name in by_column]


def read_predictions(
    schema: Schema,
    task: str,
    oracle_dir: Path,
    teacher_dir: Path,
    student_dir: Path,
    arms: list[str],
    seeds: list[int],
    baselines_dir: Path | None = None,
    scores: tuple[str, Path] | None = None,
    coldness: Mapping[str, pl.DataFrame] | None = None,
) -> Predictions:
    """All windows' examples with a label for ``task``: one student's predictions joined with the
    baselines', the teacher's and the oracle's.

    Args:
        coldness: the result of :func:`recsys.evaluation.coldness.rows_seen`; None: left out.
    """
    label, logit, probability = (
        schema.columns(base, [task])[0] for base in ("label", "logit", "probability")
    )
    baselines = (
        {name: baselines_dir / path for name, path in BASELINES.items()} if baselines_dir else {}
    )
    baselines = {name: folder for name, folder in baselines.items() if folder.is_dir()}
    parts = []
    for index, window in enumerate(schema.windows):
        base = _read_window(
            student_dir / PLAIN / f"seed-{seeds[0]}",
            window,
            ["group", "domain", "event_time", label, *schema.weight_columns],
        )
        frame = base.rename({label: "label"}).with_columns(window=pl.lit(index))
        frame = frame.filter(pl.col("label").is_not_nan())
        seen = (coldness or {}).get(window.name)
        frame = (
            frame.with_columns(seen=pl.lit(-1, dtype=pl.Int64))
            if seen is None
            else _join(frame, seen, "seen", "seen")
        )
        for name, folder in baselines.items():
            frame = _join(frame, _read_window(folder, window, [logit]), logit, name)
        frame = _join(frame, _read_window(teacher_dir, window, [logit]), logit, TEACHER)
        if scores is not None:
            name = SCORERS[scores[0]]
            found = _read_scores(scores[1] / window.name, logit)
            frame = frame.join(
                found.rename({logit: name}), on="example_id", how="left", maintain_order="left"
            )
        oracle = oracle_dir / f"{window.name}.parquet"
        if oracle.is_file():
            frame = _join(frame, _oracle_logits(oracle, probability), "logit", ORACLE)
        for arm in (PLAIN, *arms):
            for seed in seeds:
                own = _read_window(student_dir / arm / f"seed-{seed}", window, [logit])
                frame = _join(frame, own, logit, f"{arm}-{seed}")
        parts.append(frame)
    whole = pl.concat(parts)
    logits = {name: [whole[name].to_numpy()] for name in baselines}
    logits |= {arm: [whole[f"{arm}-{seed}"].to_numpy() for seed in seeds] for arm in (PLAIN, *arms)}
    logits |= {
        model: [whole[model].to_numpy()]
        for model in (TEACHER, *SCORERS.values(), ORACLE)
        if model in whole.columns
    }
    return Predictions(
        whole["window"].to_numpy(),
        whole["label"].to_numpy(),
        whole["group"].to_numpy(),
        whole["domain"].to_numpy(),
        whole["event_time"].to_numpy(),
        whole["seen"].to_numpy(),
        logits,
        whole[WEIGHT].to_numpy() if WEIGHT in whole.columns else None,
    )


def _window_file(model_dir: Path, window: Window) -> Path:
    path = model_dir / PREDICTIONS_DIR / f"{window.name}.parquet"
    if not path.is_file():
        raise InputError(
            f"{path}: no such predictions; run the stage that writes {model_dir.name} again"
        )
    return path


def _read_window(model_dir: Path, window: Window, columns: list[str]) -> pl.DataFrame:
    return pl.read_parquet(_window_file(model_dir, window), columns=["example_id", *columns])


def _read_scores(folder: Path, logit: str) -> pl.DataFrame:
    """example_id and ``logit`` of a window in the score log; examples without a score are left
    out."""
    schema = {"example_id": pl.Int64, logit: pl.Float32}
    parts = sorted(folder.glob("*.parquet"))
    found = [pl.read_parquet(part, columns=list(schema)).cast(schema) for part in parts]  # type: ignore[arg-type]
    return pl.concat([pl.DataFrame(schema=schema), *found])


def _oracle_logits(path: Path, column: str) -> pl.DataFrame:
    probability = pl.col(column).clip(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return pl.read_parquet(path).select("example_id", logit=(probability / (1 - probability)).log())


def _join(frame: pl.DataFrame, predictions: pl.DataFrame, logit: str, name: str) -> pl.DataFrame:
    """``frame`` with the predictions' column ``logit`` added as ``name``; rows keep their order."""
    if frame["example_id"].equals(predictions["example_id"]):
        return frame.with_columns(predictions[logit].alias(name))
    joined = frame.join(
        predictions.select("example_id", pl.col(logit).alias(name)),
        on="example_id",
        how="left",
        maintain_order="left",
    )
    if joined[name].null_count():
        raise InputError(
            f"evaluate: {joined[name].null_count()} examples have no prediction of {name}; train "
            f"it again"
        )
    return joined
