"""The distillation experiments in MLflow: a run for each model and seed, and one that compares
them."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.distillation.lab import TEACHER, Lab, Scores
from bench.distillation.results import WINDOW, Found, change
from recsys.data.schema import MANIFEST_FILE, SCHEMA_FILE, Schema
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.student_settings import PLAIN
from recsys.files import fingerprint
from tasks.curves import curves_of
from tasks.tracking import RunRecord, flatten, record

KIND, COMPARISON = "distillation", "distillation comparison"


def track_seed(
    experiment: str,
    lab: Lab,
    arms: dict[str, DistillationSettings],
    found: Found,
    scores: Scores = TEACHER,
    figures: Sequence[Path] = (),
) -> None:
    """One run per model of a seed: parameters, metrics by slice, curves over the windows, and the
    figures.

    Logged again, a run gets the same values once more, and one with other parameters is another
    run.

    Args:
        found: metrics by model and slice; ``arms`` has those of its models that are students.
    """
    for model, parts in found.items():
        arm = arms.get(model)
        parameters = _parameters(lab, scores, arm)
        curves = _curves_of_slices(lab, parts) | _own_curves(lab, model, arm, scores)
        run = RunRecord(
            name=f"{experiment}, {lab.folder.name}{scores.name}: {model}",
            kind=KIND,
            parameters=parameters,
            data_version=data_version(lab.windows),
            dataset=Schema.load(lab.windows).dataset,
            metrics={
                metric_name(f"{part}/{metric}"): value
                for part, metrics in parts.items()
                if not part.startswith(WINDOW)
                for metric, value in metrics.items()
                if value is not None
            },
            curves=curves,
            tags={
                "experiment": experiment,
                "stream": lab.stream,
                "arm": model,
                "seed": str(lab.seed),
            },
            artifacts={str(path): "figures" for path in figures},
            grows=fingerprint(experiment, lab.folder.name, model, parameters),
            source=str(lab.windows),
        )
        record(run)


def track_comparison(
    experiment: str,
    labs: Sequence[Lab],
    results: list[Found],
    lines: Sequence[str],
    figures: Sequence[Path],
) -> None:
    """One run over the seeds of a place: each model's NE change against none with its interval,
    table and figures."""
    lab, folder = labs[0], tracking_folder(labs[0])
    table = folder / f"{metric_name(experiment)}.md"
    table.write_text("\n".join(lines) + "\n")
    metrics = {}
    for model in (name for name in results[0] if name != PLAIN):
        one = change(results, model, PLAIN)
        values = {"ne_change": one.mean} | (
            {} if one.p is None else {"low": one.low, "high": one.high, "p": one.p}
        )
        metrics |= {metric_name(f"{model}/{name}"): value for name, value in values.items()}
    seeds = [each.seed for each in labs]
    run = RunRecord(
        name=f"{experiment}, {lab.stream}: comparison",
        kind=COMPARISON,
        parameters={"stream": lab.stream, "rows": lab.rows, "seeds": seeds},
        data_version=data_version(*(each.windows for each in labs)),
        dataset=Schema.load(lab.windows).dataset,
        metrics=metrics,
        tags={"experiment": experiment, "stream": lab.stream},
        artifacts={str(table): "", **{str(path): "figures" for path in figures}},
        grows=fingerprint(experiment, lab.stream, lab.rows, seeds),
        source=str(lab.windows),
    )
    record(run)


def tracking_folder(lab: Lab) -> Path:
    """Where what is sent to MLflow waits for it."""
    folder = lab.work / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_version(*windows_dirs: Path) -> str:
    """A name for the contents of windows that DVC does not know of."""
    paths = [
        path
        for folder in windows_dirs
        for path in (folder / SCHEMA_FILE, *sorted(folder.glob(f"*/{MANIFEST_FILE}")))
    ]
    return fingerprint(*(path.read_bytes() for path in paths))


def metric_name(text: str) -> str:
    """``text`` in the characters that MLflow takes: ``users seen < 5`` is ``users seen below
    5``."""
    return re.sub(r"[^\w\-. /]", "", text.replace("<", "below"))


def _parameters(lab: Lab, scores: Scores, arm: DistillationSettings | None) -> dict[str, object]:
    case = asdict(lab.case)
    own = (
        {} if arm is None else {f"distillation.{key}": value for key, value in flatten(arm).items()}
    )
    given = {
        "stream": lab.stream,
        "rows": lab.rows,
        "seed": lab.seed,
        "stream.changes": json.dumps(case["changes"]),
    }
    return (
        given
        | {f"scores.{key}": value for key, value in asdict(scores).items()}
        | own
        | flatten(lab.train())
    )


def _curves_of_slices(
    lab: Lab, parts: dict[str, dict[str, float]]
) -> dict[str, list[float | None]]:
    """Metrics over all domains by window, each at its window's place; none where windows are no
    slices."""
    windows = len(Schema.load(lab.windows).windows)
    names = parts["all"]
    rows = [parts.get(f"{WINDOW}{number}", {}) for number in range(1, windows + 1)]
    return (
        {f"window/{name}": [row.get(name) for row in rows] for name in names} if any(rows) else {}
    )


def _own_curves(
    lab: Lab, model: str, arm: DistillationSettings | None, scores: Scores
) -> dict[str, list[float | None]]:
    """What training has written for each window: by domain for students, for the teacher over all
    domains."""
    if arm is not None:
        folder = lab.folder / lab.output(arm, scores)
        runs = {domain: folder / domain / model / f"seed-{lab.seed}" for domain in lab.domains}
    else:
        runs = (
            {"teacher": lab.teacher_folder(scores)}
            if model == "teacher" and not scores.truth
            else {}
        )
    return {
        metric_name(f"{name}/{curve}"): values
        for name, folder in runs.items()
        for curve, values in curves_of(folder).items()
    }
