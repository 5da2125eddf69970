"""The evaluate stage: is a student better with a teacher than without, by how much, how surely."""

import csv
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.schema import Schema, Window
from recsys.evaluation.comparison import Comparison, compare, interval, ne_differences
from recsys.evaluation.figures import draw_differences, draw_windows
from recsys.evaluation.gate import Verdict, judge
from recsys.evaluation.metrics import METRICS, compute_metrics
from recsys.evaluation.model_table import (
    BASELINES,
    DISTILLED,
    ORACLE,
    PLAIN,
    SCORERS,
    TEACHER,
    ModelRow,
    in_words,
    model_table,
)
from recsys.evaluation.predictions import PREDICTIONS_DIR
from recsys.evaluation.printed import TABLE_FILE
from recsys.evaluation.settings import EvaluateSettings, check_evaluated
from recsys.files import write_json

WINDOWS_FILE = "windows.csv"
LABELS = {
    "ne": "NE",
    "auc": "AUC",
    "gauc": "gAUC",
    "logloss": "LogLoss",
    "calibration": "calibration",
}
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class MetricRow:
    """One student, task, arm and metric over the evaluation windows; the comparison is plain's with
    the arm's.

    Only rows that have the task's label count. ``teacher`` and ``oracle`` (the generated stream's
    true probabilities) are measured on the same rows; ``oracle`` is None on real logs.
    """

    student: str
    task: str
    arm: str
    comparison: Comparison
    teacher: float
    oracle: float | None


@dataclass(frozen=True)
class Report:
    """What evaluate found: ``arms`` are those beside plain; ``windows`` is windows.csv, a row a
    model, task and window; ``models`` has every model of each student and task, ``verdicts``
    whether each student may be served.

    ``tasks`` are each student's, its main one first; ``rows_by_student`` counts the main one's.
    """

    first_window: str
    rows_by_student: dict[str, int]
    seeds: list[int]
    arms: list[str]
    tasks: dict[str, list[str]]
    metrics: list[MetricRow]
    models: list[ModelRow]
    verdicts: dict[str, Verdict]
    windows: list[dict[str, Any]]

    @property
    def shows_tasks(self) -> bool:
        """Whether there is more than one task to tell apart."""
        return shows_tasks(self.windows)

    def is_main(self, student: str, task: str) -> bool:
        """Whether ``task`` is the main one of ``student``."""
        return self.tasks[student][0] == task


@dataclass(frozen=True)
class _Predictions:
    """One student's rows over all windows, with each model's logits [N]; one array a seed for an
    arm."""

    window: NDArray[np.integer]
    labels: NDArray[np.floating]
    groups: NDArray[np.integer]
    logits: dict[str, list[NDArray[np.floating]]]

    def select(self, mask: NDArray[np.bool_]) -> "_Predictions":
        """The rows of ``mask`` [N]."""
        logits = {model: [one[mask] for one in seeds] for model, seeds in self.logits.items()}
        return _Predictions(self.window[mask], self.labels[mask], self.groups[mask], logits)

    def metrics(self, model: str) -> dict[str, float]:
        """Seed-mean metrics of one model."""
        each = [
            compute_metrics(logits, self.labels, self.groups).as_dict()
            for logits in self.logits[model]
        ]
        return {name: float(np.mean([one[name] for one in each])) for name in METRICS}


def evaluate(
    windows_dir: Path,
    oracle_dir: Path,
    teacher_dir: Path,
    students_dir: Path,
    settings: EvaluateSettings,
    output_dir: Path,
    baselines_dir: Path | None = None,
    scores: tuple[str, Path] | None = None,
) -> Report:
    """Compare every arm of every student with the plain one, on the evaluation windows, all their
    rows pooled.

    Writes report.json, table.md, windows.csv and figures/*.png in ``output_dir``.

    Args:
        baselines_dir: baselines of the data's main task, which stand beside the models of each
            student that learns it; None: there are none.
        scores: whose scores students learn from (a key of SCORERS) and the log of them,
            where that is not the teacher alone; they then stand beside the teacher.

    Raises:
        InputError: no students, arms with different seeds, missing predictions, or no window left.
    """
    schema = Schema.load(windows_dir)
    check_evaluated(settings, len(schema.windows))
    students = sorted(path.name for path in students_dir.glob("*") if (path / PLAIN).is_dir())
    if not students:
        raise InputError(
            f"{students_dir}: no students; run the students stage first (towerflow students)"
        )
    arms = _common_arms(students_dir, students)
    seeds = _common_seeds(students_dir, students, arms)
    metrics: list[MetricRow] = []
    models: list[ModelRow] = []
    window_rows: list[dict[str, Any]] = []
    rows_by_student: dict[str, int] = {}
    tasks = {
        student: _tasks(schema, students_dir / student / PLAIN / f"seed-{seeds[0]}")
        for student in students
    }
    for student, task in [(name, task) for name in students for task in tasks[name]]:
        of_main_task = baselines_dir if task == schema.tasks[0] else None
        predictions = _read(
            schema,
            task,
            oracle_dir,
            teacher_dir,
            students_dir / student,
            arms,
            seeds,
            of_main_task,
            scores,
        )
        evaluated = predictions.select(predictions.window >= settings.first_evaluation_window)
        rows_by_student.setdefault(student, len(evaluated.labels))
        metrics += [
            row for arm in arms for row in _compare(student, task, arm, evaluated, settings)
        ]
        models += _against_plain(student, task, evaluated, settings)
        window_rows += _by_window(student, task, predictions, schema.windows)
    first = schema.windows[settings.first_evaluation_window].name
    verdicts = {
        student: judge(
            [row for row in models if (row.student, row.task) == (student, own[0])], settings.gate
        )
        for student, own in tasks.items()
    }
    report = Report(
        first, rows_by_student, seeds, arms, tasks, metrics, models, verdicts, window_rows
    )
    _write(report, output_dir)
    return report


def _compare(
    student: str, task: str, arm: str, evaluated: _Predictions, settings: EvaluateSettings
) -> list[MetricRow]:
    comparisons = compare(
        evaluated.logits[PLAIN],
        evaluated.logits[arm],
        evaluated.labels,
        evaluated.groups,
        settings.bootstrap_samples,
        settings.confidence,
        settings.seed,
    )
    scorer = next((name for name in SCORERS.values() if name in evaluated.logits), TEACHER)
    teacher = evaluated.metrics(scorer)
    oracle = evaluated.metrics(ORACLE) if ORACLE in evaluated.logits else {}
    return [
        MetricRow(student, task, arm, one, teacher[one.metric], oracle.get(one.metric))
        for one in comparisons
    ]


def _against_plain(
    student: str, task: str, evaluated: _Predictions, settings: EvaluateSettings
) -> list[ModelRow]:
    """Every model, those that are simplest first."""
    differences = ne_differences(
        evaluated.logits[PLAIN],
        list(evaluated.logits.values()),
        evaluated.labels,
        evaluated.groups,
        settings.bootstrap_samples,
        settings.seed,
    )
    found = {model: evaluated.metrics(model) for model in evaluated.logits}
    tail = (1.0 - settings.confidence) / 2
    return [
        ModelRow(
            student,
            task,
            model,
            values,
            values["ne"] - found[PLAIN]["ne"],
            *interval(differences[:, place], tail),
        )
        for place, (model, values) in enumerate(found.items())
    ]


def _by_window(
    student: str, task: str, predictions: _Predictions, windows: list[Window]
) -> list[dict[str, Any]]:
    rows = []
    for index, window in enumerate(windows):
        part = predictions.select(predictions.window == index)
        for model in part.logits:
            values = part.metrics(model)
            own = {
                "model": f"{student}/{model}",
                "task": task,
                "window": window.name,
                "rows": len(part.labels),
            }
            rows.append(own | values)
    return rows


def _common_arms(students_dir: Path, students: list[str]) -> list[str]:
    """The arms beside plain, the same for every student; distilled first."""
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


def _common_seeds(students_dir: Path, students: list[str], arms: list[str]) -> list[int]:
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


def _tasks(schema: Schema, model_dir: Path) -> list[str]:
    """The tasks that a model has predicted, in the order of its columns: its main one first."""
    by_column = dict(zip(schema.columns("logit", schema.tasks), schema.tasks, strict=True))
    return [
        by_column[name]
        for name in _read_window(model_dir, schema.windows[0]).columns
        if name in by_column
    ]


def _read(
    schema: Schema,
    task: str,
    oracle_dir: Path,
    teacher_dir: Path,
    student_dir: Path,
    arms: list[str],
    seeds: list[int],
    baselines_dir: Path | None = None,
    scores: tuple[str, Path] | None = None,
) -> _Predictions:
    """All windows of one student, the baselines, the teacher and the oracle joined by example, of
    those with a label of ``task``."""
    label, logit, probability = (
        schema.columns(base, [task])[0] for base in ("label", "logit", "probability")
    )
    baselines = (
        {name: baselines_dir / path for name, path in BASELINES.items()} if baselines_dir else {}
    )
    baselines = {name: folder for name, folder in baselines.items() if folder.is_dir()}
    parts = []
    for index, window in enumerate(schema.windows):
        base = _read_window(student_dir / PLAIN / f"seed-{seeds[0]}", window)
        frame = base.select(
            "example_id", "group", pl.col(label).alias("label"), window=pl.lit(index)
        )
        frame = frame.filter(pl.col("label").is_not_nan())
        for name, folder in baselines.items():
            frame = _join(frame, _read_window(folder, window), logit, name)
        frame = _join(frame, _read_window(teacher_dir, window), logit, TEACHER)
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
                own = _read_window(student_dir / arm / f"seed-{seed}", window)
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
    return _Predictions(
        whole["window"].to_numpy(), whole["label"].to_numpy(), whole["group"].to_numpy(), logits
    )


def _read_window(model_dir: Path, window: Window) -> pl.DataFrame:
    path = model_dir / PREDICTIONS_DIR / f"{window.name}.parquet"
    if not path.is_file():
        raise InputError(
            f"{path}: no such predictions; run the stage that writes {model_dir.name} again"
        )
    return pl.read_parquet(path)


def _read_scores(folder: Path, logit: str) -> pl.DataFrame:
    """example_id and ``logit`` of a window of the score log; examples without a score are left
    out."""
    schema = {"example_id": pl.Int64, logit: pl.Float32}
    parts = sorted(folder.glob("*.parquet"))
    found = [pl.read_parquet(part, columns=list(schema)).cast(schema) for part in parts]  # type: ignore[arg-type]
    return pl.concat([pl.DataFrame(schema=schema), *found])


def _oracle_logits(path: Path, column: str) -> pl.DataFrame:
    probability = pl.col(column).clip(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return pl.read_parquet(path).select("example_id", logit=(probability / (1 - probability)).log())


def _join(frame: pl.DataFrame, predictions: pl.DataFrame, logit: str, name: str) -> pl.DataFrame:
    """``frame`` with the predictions' column ``logit`` as column ``name``; rows keep their
    order."""
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


def _write(report: Report, output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "report.json", _as_json(report))
    (output_dir / TABLE_FILE).write_text(
        "\n".join([_markdown(report), model_table(report.models), _sentences(report)])
    )
    write_windows(report.windows, output_dir / WINDOWS_FILE)
    figures = output_dir / "figures"
    figures.mkdir(exist_ok=True)
    for student, task in [(name, task) for name, tasks in report.tasks.items() for task in tasks]:
        rows = [
            row
            for row in report.windows
            if row["model"].startswith(f"{student}/") and row["task"] == task
        ]
        name = student if report.is_main(student, task) else f"{student}_{task}"
        draw_windows(student, rows, figures / f"ne_{name}.png")
    arm = report.arms[0] if len(report.arms) == 1 else "arm"
    differences = [(": ".join(_names(row, report)), row.comparison) for row in report.metrics]
    draw_differences(differences, arm, figures / "differences.png")


def _sentences(report: Report) -> str:
    """What the tables mean for each student's main task, a line a student."""
    lines = []
    for student, tasks in report.tasks.items():
        rows = [row for row in report.models if (row.student, row.task) == (student, tasks[0])]
        verdict = report.verdicts[student]
        lines.append(f"- {in_words(rows)}\n")
        if not verdict.passes:
            lines.append(f"- **{student} may not be served as champion: {verdict.why}.**\n")
    return "".join(lines)


def shows_tasks(rows: list[dict[str, Any]]) -> bool:
    """Whether ``rows`` of windows.csv are of more than one task to tell apart."""
    return len({row["task"] for row in rows}) > 1


def write_windows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write windows.csv, with a column of tasks where there are several."""
    with path.open("w", newline="") as file:
        names = ["model", *(["task"] if shows_tasks(rows) else []), "window", "rows", *METRICS]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _as_json(report: Report) -> dict[str, Any]:
    """A metric of a student: each arm's value and the first arm's difference; ``comparisons`` has
    every arm's.

    Both are of its main task; ``further_tasks`` has the others': student, task, arm, metric.
    ``models`` has every model of the main task, baselines included: student, model, metric.
    """
    students: dict[str, dict[str, Any]] = {}
    comparisons: dict[str, dict[str, dict[str, Any]]] = {}
    further: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for row in report.metrics:
        one = {**asdict(row.comparison), "teacher": row.teacher, "oracle": row.oracle}
        one[PLAIN], one[row.arm] = one.pop("first"), one.pop("second")
        metric = one.pop("metric")
        if not report.is_main(row.student, row.task):
            further.setdefault(row.student, {}).setdefault(row.task, {}).setdefault(row.arm, {})[
                metric
            ] = one
            continue
        students.setdefault(row.student, {}).setdefault(metric, one)[row.arm] = one[row.arm]
        comparisons.setdefault(row.student, {}).setdefault(row.arm, {})[metric] = dict(one)
    found = {
        "first_window": report.first_window,
        "rows": report.rows_by_student,
        "seeds": report.seeds,
        "students": students,
        "models": {
            student: {
                row.model: row.as_json()
                for row in report.models
                if (row.student, row.task) == (student, tasks[0])
            }
            for student, tasks in report.tasks.items()
        },
    }
    found["verdicts"] = {name: verdict.as_json() for name, verdict in report.verdicts.items()}
    found |= {} if report.arms == [DISTILLED] else {"comparisons": comparisons}
    return found | ({"tasks": report.tasks, "further_tasks": further} if report.shows_tasks else {})


def _names(row: MetricRow, report: Report) -> list[str]:
    """The student, with its arm and its task where there are several."""
    student = row.student if len(report.arms) == 1 else f"{row.student}: {row.arm}"
    return [student, row.task] if report.shows_tasks else [student]


def _markdown(report: Report) -> str:
    arm = report.arms[0] if len(report.arms) == 1 else "arm"
    texts = ["student", *(["task"] if report.shows_tasks else []), "metric"]
    numbers = [PLAIN, arm, "difference", "low", "high", "teacher", "oracle"]
    lines = [
        f"| {' | '.join(texts + numbers)} |",
        "|---" * len(texts) + "|" + "---:|" * len(numbers),
    ]
    lines += [f"| {' | '.join([*_names(row, report), *_cells(row)])} |" for row in report.metrics]
    return "\n".join(lines) + "\n"


def _cells(row: MetricRow) -> list[str]:
    """The row's values as text; one that is not defined (gAUC of a log without groups) is a
    dash."""
    one = row.comparison
    oracle = "" if row.oracle is None else _text(row.oracle, ".4f")
    signed = [_text(value, "+.5f") for value in (one.difference, one.low, one.high)]
    return [
        LABELS[one.metric],
        _text(one.first, ".4f"),
        _text(one.second, ".4f"),
        *signed,
        _text(row.teacher, ".4f"),
        oracle,
    ]


def _text(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def measure_window(
    window: Window, schema: Schema, oracle_dir: Path, teacher_dir: Path, students_dir: Path
) -> list[dict[str, Any]]:
    """The rows of windows.csv of one window: each student's arms, the teacher and the oracle on the
    student's rows.

    Raises:
        InputError: predictions are missing.
    """
    rows = []
    only = replace(schema, windows=[window])
    for student in sorted(path for path in students_dir.glob("*") if (path / PLAIN).is_dir()):
        arms = sorted(path.name for path in student.glob("*/") if path.name != PLAIN)
        seeds = sorted(
            int(path.name.removeprefix("seed-")) for path in (student / PLAIN).glob("seed-*")
        )
        for task in _tasks(only, student / PLAIN / f"seed-{seeds[0]}"):
            predictions = _read(only, task, oracle_dir, teacher_dir, student, arms, seeds)
            rows += _by_window(student.name, task, predictions, [window])
    return rows
