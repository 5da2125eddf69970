"""When does distillation help: the teacher's bias, age and size, drift, domain shift, and how much
there is to learn.

    python -m bench.distillation.sweeps bias --seeds 1 2 3 4 5
    python -m bench.distillation.sweeps staleness --seeds 1 2 3 4 5 --write

Each seed is a generated stream, a teacher and students of its own; every difference is paired by
seed. Strengths are those that ``python -m bench.distillation.modes tune`` found on a stream that
judges nothing here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.distillation.lab import ARMS, FIRST_WINDOW, PARAMS, STREAMS, TEACHER, Lab, Scores
from bench.distillation.results import (
    CONFIDENCE,
    Found,
    change,
    command_line,
    draw_lines,
    mean,
    measured,
    write_section,
)
from bench.distillation.teacher_ladder import cost, stream_schema
from recsys.config import load_settings
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.student_settings import PLAIN, StudentsSettings

REPORT, FIGURES = Path("docs/benchmarks/distillation_sweeps.md"), Path("docs/figures")
SHARED, AFFINE, AH, EXTRA = "shared", "affine", "AH", "AH + SA, extra head"
DEFAULT, HARD, REPLACE = "AH, beta = 3", "AH with the hard label", "AH + SA, replace"
AFTER, SLOW = f"{REPLACE}, after", f"{REPLACE}, slow"
LATE_WINDOW = 8  # from here on a teacher six windows late has been trained on two windows at least
LAGS = (0, 3, 6)
RATIOS = (1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class Point:
    """One place on the axis; ``share`` of --rows."""

    label: str
    stream: str = "shifted"
    scores: Scores = TEACHER
    share: float = 1.0


@dataclass(frozen=True)
class Sweep:
    """One experiment: ``arms`` at every point, judged from ``first_window``; pairs whose difference
    is tested."""

    title: str
    axis: str
    points: tuple[Point, ...]
    arms: tuple[str, ...]
    contrasts: tuple[tuple[str, str], ...]
    first_window: int = FIRST_WINDOW


def _adapted(**changes: Any) -> DistillationSettings:
    base = ARMS[REPLACE]
    return base.model_copy(update={"adapter": base.adapter.model_copy(update=changes)})


def _lags(stream: str) -> tuple[Point, ...]:
    return tuple(Point(str(lag), stream, Scores(lag=lag)) for lag in LAGS)


VARIANTS = {
    DEFAULT: ARMS[AH].model_copy(update={"gradient_scale": 3.0}),
    AFTER: _adapted(update="after"),
    SLOW: _adapted(learning_rate=0.001),
    HARD: ARMS[AH].model_copy(update={"hard_label_weight": 1.0}),
}
LADDER = ("as_the_student", "dcn_small", "", "dcn_large", "wukong_small", "wukong_large")
HEADS = ((AH, SHARED),)
ADAPTED = (EXTRA, AH)
SWEEPS = {
    "bias": Sweep(
        "The teacher's scores times r",
        "r",
        tuple(Point(f"{ratio:g}", scores=Scores(ratio=ratio)) for ratio in RATIOS),
        (SHARED, AFFINE, AH),
        (*HEADS, (AFFINE, SHARED), (AFFINE, AH)),
    ),
    "truth": Sweep(
        "A teacher that says r times the truth",
        "r",
        tuple(
            Point(f"{ratio:g}", scores=Scores(ratio=ratio, truth=True))
            for ratio in (1.0, 1.5, 2.0, 3.0)
        ),
        (SHARED, AH),
        HEADS,
    ),
    "staleness": Sweep(
        "A teacher some windows old",
        "windows between the newest snapshot allowed and the one that scores",
        _lags("shifted"),
        (SHARED, AH, EXTRA),
        (*HEADS, ADAPTED),
        LATE_WINDOW,
    ),
    "staleness-without-drift": Sweep(
        "A teacher some windows old, on a stream that does not drift",
        "windows between the newest snapshot allowed and the one that scores",
        _lags("drift-0"),
        (),
        (),
        LATE_WINDOW,
    ),
    "drift": Sweep(
        "Speed of drift, with a fresh teacher",
        "share of the effects' variance that turns over the stream",
        (Point("0", "drift-0"), Point("0.8"), Point("1", "drift-1")),
        (AH, EXTRA),
        (ADAPTED,),
        LATE_WINDOW,
    ),
    "drift-stale": Sweep(
        "Speed of drift, with a teacher three windows old",
        "share of the effects' variance that turns over the stream",
        tuple(
            Point(label, stream, Scores(lag=3))
            for label, stream in (("0", "drift-0"), ("0.8", "shifted"), ("1", "drift-1"))
        ),
        (AH, EXTRA),
        (ADAPTED,),
        LATE_WINDOW,
    ),
    "domains": Sweep(
        "Shift between domains",
        "strength of the effects that differ by domain",
        (Point("0", "domains-0"), Point("0.7"), Point("1.4", "domains-1.4")),
        (SHARED, AH),
        HEADS,
    ),
    "ladder": Sweep(
        "Size of the teacher",
        "teacher's training FLOPs over the student's",
        tuple(Point(name or "default", scores=Scores(teacher=name)) for name in LADDER),
        (SHARED, AH),
        HEADS,
    ),
    "ladder-long": Sweep(
        "Size of the teacher, by the length of the stream",
        "teacher, rows over --rows",
        tuple(
            Point(f"{name or 'default'}, {share:g}", scores=Scores(teacher=name), share=share)
            for share in (1.0, 4.0)
            for name in ("dcn_small", "")
        ),
        (SHARED, AH),
        HEADS,
    ),
    "rows": Sweep(
        "Length of the stream",
        "rows over --rows",
        (Point("1/4", share=0.25), Point("1")),
        (SHARED, AH),
        HEADS,
    ),
    "variants": Sweep(
        "The default strength, and what the adapter loses by",
        "stream",
        (Point("shifted"),),
        (AH, DEFAULT, HARD, EXTRA, REPLACE, AFTER, SLOW),
        ((EXTRA, AH), (REPLACE, AH), (AFTER, REPLACE), (SLOW, REPLACE), (HARD, AH)),
    ),
    "clicks": Sweep(
        "Scarcity of clicks",
        "base rate, times that of the default stream",
        (Point("1"), Point("5", "more-clicks")),
        (SHARED, AH),
        HEADS,
    ),
}


def flops_ratios() -> dict[str, float]:
    """Each rung's training FLOPs per example over the student's, by its name in the ladder."""
    schema = stream_schema(PARAMS)
    student = cost(schema, load_settings(PARAMS / "students.yaml", StudentsSettings).model).flops
    lab = Lab(Path(), "shifted", 1, 0, 1, Path())
    return {name: cost(schema, lab.teacher(name).model).flops / student for name in LADDER}


def ne_lines(sweep: Sweep, labels: list[str], found: list[list[Found]]) -> list[str]:
    """Markdown: NE change against no distillation, with its interval."""
    names = ["teacher", *sweep.arms]
    lines = [
        f"| {sweep.axis} | NE of plain | {' | '.join(names)} |",
        "|---" + "|---:" * (len(names) + 1) + "|",
    ]
    for label, results in zip(labels, found, strict=True):
        cells = [str(change(results, name, PLAIN)) for name in names]
        lines.append(f"| {label} | {mean(results, PLAIN, 'ne'):.4f} | {' | '.join(cells)} |")
    return lines


def contrast_lines(sweep: Sweep, labels: list[str], found: list[list[Found]]) -> list[str]:
    """Markdown: paired NE differences between arms, and p."""
    if not sweep.contrasts:
        return []
    names = [f"{one} against {other}" for one, other in sweep.contrasts]
    lines = ["Paired differences in NE, % (below zero: the first is better):", ""]
    lines += [f"| {sweep.axis} | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    for label, results in zip(labels, found, strict=True):
        differences = [change(results, one, other) for one, other in sweep.contrasts]
        cells = [f"{one}" + ("" if one.p is None else f", p {one.p:.2g}") for one in differences]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def calibration_lines(sweep: Sweep, labels: list[str], found: list[list[Found]]) -> list[str]:
    """Markdown: served calibration, and (c + w t)/(1 + w) of plain's c and the teacher's t for the
    shared head."""
    weight = ARMS[SHARED].loss_weight
    names, has_form = ["teacher", PLAIN, *sweep.arms], SHARED in sweep.arms
    form = [f"closed form for {SHARED}"] if has_form else []
    lines = [
        f"| {' | '.join([sweep.axis, *names, *form])} |",
        "|---" + "|---:" * len(names + form) + "|",
    ]
    for label, results in zip(labels, found, strict=True):
        values = [mean(results, name, "calibration") for name in names]
        if has_form:
            values.append((values[1] + weight * values[0]) / (1 + weight))
        lines.append(f"| {label} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return lines


def main() -> None:
    """Read the command line, run what is missing and print the tables."""
    given = command_line(__doc__, SWEEPS).parse_args()
    sweep = SWEEPS[given.what]
    arms = {name: (ARMS | VARIANTS)[name] for name in (PLAIN, *sweep.arms)}

    def labs_of(point: Point) -> list[Lab]:
        rows = round(given.rows * point.share)
        return [
            Lab(given.work, point.stream, seed, rows, given.ranks, given.logs)
            for seed in given.seeds
        ]

    def results(point: Point) -> list[Found]:
        return [
            measured(lab, arms, point.scores, sweep.first_window, whole_only=True)
            for lab in labs_of(point)
        ]

    found = [results(point) for point in sweep.points]
    labels = [point.label for point in sweep.points]
    if given.what == "ladder":
        ratios = flops_ratios()
        labels = [f"{ratios[point.scores.teacher]:.0f} ({point.label})" for point in sweep.points]
    lines = [
        f"{given.rows:,} rows, seeds {given.seeds}, judged from window {sweep.first_window + 1} "
        f"on; "
        f"NE change in % of plain's, with {CONFIDENCE:.0%} intervals over seeds; "
        f"streams "
        f"{', '.join(sorted({f'{p.stream} {STREAMS[p.stream].changes}' for p in sweep.points}))}.",
        "",
        *ne_lines(sweep, labels, found),
        "",
        *contrast_lines(sweep, labels, found),
        "Calibration (mean prediction over mean label):",
        "",
        *calibration_lines(sweep, labels, found),
    ]
    print("\n".join(lines))
    if given.write:
        write_section(REPORT, "When distillation helps", f"{given.what}: {sweep.title}", lines)
        draw(FIGURES, given.what, sweep, labels, found)
    if given.mlflow:
        from bench.distillation.tracking import track_comparison, track_seed, tracking_folder

        figures = draw(
            tracking_folder(labs_of(sweep.points[0])[0]), given.what, sweep, labels, found
        )
        for point, label, results_of_seeds in zip(sweep.points, labels, found, strict=True):
            labs = labs_of(point)
            for lab, one in zip(labs, results_of_seeds, strict=True):
                track_seed(given.what, lab, arms, one, point.scores, figures)
            track_comparison(f"{given.what}: {label}", labs, results_of_seeds, lines, figures)


def draw(
    folder: Path, name: str, sweep: Sweep, labels: list[str], found: list[list[Found]]
) -> list[Path]:
    """distillation_<name>.png in ``folder``; none of a sweep with one point."""
    if len(sweep.points) == 1:
        return []
    series = {
        model: [change(one, model, PLAIN) for one in found] for model in ("teacher", *sweep.arms)
    }
    path = folder / f"distillation_{name}.png"
    ticks = [label.replace(" (", "\n(") for label in labels]
    draw_lines(
        path,
        sweep.axis,
        range(len(labels)),
        series,
        ticks,
        f"{sweep.title}: NE against no distillation",
    )
    return [path]


if __name__ == "__main__":
    main()
