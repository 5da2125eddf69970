"""Which way of distilling is best, and how much of the teacher's gain reaches a student?

    python -m bench.distillation.modes tune --seeds 777          # on a stream that does not judge
    python -m bench.distillation.modes compare --seeds 1 2 3 4 5
    python -m bench.distillation.modes tune --seeds 777 --stream ebnerd-before \\
        --logs /path/to/logs --strengths 0.3 1 3
    python -m bench.distillation.modes compare --stream ebnerd --logs /path/to/logs --write

Each seed is a stream (of a generated log), a teacher and students of its own; an arm's difference
to no distillation is paired by seed. What is done is kept in --work (bench/distillation/lab.py).
"""

from itertools import product
from pathlib import Path

from bench.distillation.lab import ARMS, SPARSE, STREAMS, UNSCALED, Lab, arms_of
from bench.distillation.results import (
    CONFIDENCE,
    WINDOW,
    Found,
    change,
    command_line,
    draw_lines,
    interval,
    mean,
    measured,
    write_section,
)
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.student_settings import PLAIN

REPORT = Path("docs/benchmarks/distillation_modes.md")
TUNING_SEEDS = {777, 778, 779}  # their streams are not judged
NOT_STUDENTS = (PLAIN, "teacher", "oracle")
LABEL_SCALES = (1.0, 3.0)
TUNED = [name for name in ARMS if name not in (PLAIN, UNSCALED)]


def tuning_arms(names: list[str], strengths: list[float]) -> dict[str, DistillationSettings]:
    """Every strength that ``tune`` tries of the arms ``names``, by a name that says it."""
    arms = {PLAIN: ARMS[PLAIN]}
    for name, one in product(names, strengths):
        if not ARMS[name].has_own_head:
            arms[f"{name}, w={one:g}"] = ARMS[name].model_copy(update={"loss_weight": one})
            continue
        for alpha in LABEL_SCALES if name == "AH" else (1.0,):
            changes = {"gradient_scale": one, "label_scale": alpha}
            arms[f"{name}, beta={one:g}, alpha={alpha:g}"] = ARMS[name].model_copy(update=changes)
    return arms


def comparison_lines(results: list[Found], part: str) -> list[str]:
    """Markdown: each model on one slice, differences to no distillation paired by seed."""
    lines = [
        "| model | NE | NE change % | p | AUC | AUC change | gAUC change | LogLoss | calibration | "
        "transfer ratio |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for model in results[0]:
        values = {
            name: mean(results, model, name, part)
            for name in ("ne", "auc", "gauc", "logloss", "calibration")
        }
        ne = change(results, model, PLAIN, part)
        differs = model != PLAIN
        cells = [
            model,
            f"{values['ne']:.4f}",
            str(ne) if differs else "",
            f"{ne.p:.2g}" if differs and ne.p is not None else "",
            f"{values['auc']:.4f}",
            *(
                f"{values[m] - mean(results, PLAIN, m, part):+.4f}" if differs else ""
                for m in ("auc", "gauc")
            ),
            f"{values['logloss']:.4f}",
            f"{values['calibration']:.3f}",
            str(interval(transfer_ratios(results, model, part)))
            if model not in NOT_STUDENTS
            else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def window_lines(results: list[Found]) -> list[str]:
    """Markdown: NE change of each model in each window."""
    parts = [part for part in results[0][PLAIN] if part.startswith(WINDOW)]
    models = [model for model in results[0] if model != PLAIN]
    lines = [f"| window | {' | '.join(models)} |", "|---:" * (len(models) + 1) + "|"]
    for part in parts:
        cells = [f"{change(results, model, PLAIN, part).mean:+.2f}" for model in models]
        lines.append(f"| {part.removeprefix(WINDOW)} | {' | '.join(cells)} |")
    return lines


def transfer_ratios(results: list[Found], model: str, part: str) -> list[float]:
    """NE gained by a student over NE gained by the teacher, a seed each."""
    ne = [
        {name: found[name][part]["ne"] for name in (PLAIN, model, "teacher")} for found in results
    ]
    return [(one[PLAIN] - one[model]) / (one[PLAIN] - one["teacher"]) for one in ne]


def tuning_lines(results: list[Found]) -> list[str]:
    """Markdown: NE of each strength, the mean over seeds."""
    lines = ["| arm | NE | NE change % | AUC | calibration |", "|---|---:|---:|---:|---:|"]
    for arm in results[0]:
        values = [mean(results, arm, metric) for metric in ("ne", "auc", "calibration")]
        moved = change(results, arm, PLAIN).mean
        lines.append(
            f"| {arm} | {values[0]:.4f} | {moved:+.3f} | {values[1]:.4f} | {values[2]:.3f} |"
        )
    return lines


def main() -> None:
    """Read the command line, run what is missing and print the tables."""
    parser = command_line(__doc__, ("tune", "compare"))
    parser.add_argument("--stream", choices=list(STREAMS), default="shifted")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), help="besides plain; all of them if not given"
    )
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[0.3, 1, 3, 10, 30], help="of beta, or w"
    )
    given = parser.parse_args()
    tunes = given.what == "tune"
    case = STREAMS[given.stream]
    assert tunes or not TUNING_SEEDS & set(given.seeds), f"seeds {TUNING_SEEDS} chose the strengths"
    labs = [
        Lab(given.work, given.stream, seed, given.rows, given.ranks, given.logs)
        for seed in given.seeds
    ]
    size = f"{given.rows:,} rows" if case.dataset == SPARSE else "all rows"
    seeds = f"Seeds {', '.join(map(str, given.seeds))}"
    if tunes:
        arms = tuning_arms(given.arms or TUNED, given.strengths)
        results = [measured(lab, arms, whole_only=True) for lab in labs]
        lines = [f"{size}. {seeds}, which do not judge.", "", *tuning_lines(results)]
    else:
        arms = {
            name: arm
            for name, arm in arms_of(case).items()
            if not given.arms or name in (PLAIN, *given.arms)
        }
        results = [measured(lab, arms) for lab in labs]
        lines = [
            f"{case.changes}, {size}. {seeds}; {CONFIDENCE:.0%} intervals over them; judged from "
            f"window "
            f"{case.first_window + 1} on."
        ]
        for part in (one for one in results[0][PLAIN] if not one.startswith(WINDOW)):
            lines += ["", f"### {part}", "", *comparison_lines(results, part)]
        lines += ["", "### NE change % by window", "", *window_lines(results)]
    print("\n".join(lines))
    if given.write:
        write_section(REPORT, "Ways to distil", f"{given.what}: stream {given.stream}", lines)
    if given.mlflow:
        from bench.distillation.tracking import track_comparison, track_seed, tracking_folder

        figures = [] if tunes else [draw(tracking_folder(labs[0]), given.stream, results)]
        for lab, found in zip(labs, results, strict=True):
            track_seed(given.what, lab, arms, found, figures=figures)
        track_comparison(given.what, labs, results, lines, figures)


def draw(folder: Path, stream: str, results: list[Found]) -> Path:
    """compare_<stream>.png in ``folder``: NE change of each model over the windows."""
    parts = [part for part in results[0][PLAIN] if part.startswith(WINDOW)]
    series = {
        model: [change(results, model, PLAIN, part) for part in parts]
        for model in results[0]
        if model != PLAIN
    }
    path, numbers = folder / f"compare_{stream}.png", [part.removeprefix(WINDOW) for part in parts]
    draw_lines(
        path, "window", range(len(parts)), series, numbers, f"{stream}: NE against no distillation"
    )
    return path


if __name__ == "__main__":
    main()
