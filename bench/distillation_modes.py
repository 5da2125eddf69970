"""Which way of distilling is best, and how much of the teacher's gain reaches a student?

    python -m bench.distillation_modes tune                     # on a stream that does not judge
    python -m bench.distillation_modes compare --seeds 1 2 3 4 5
    python -m bench.distillation_modes bias --seeds 1 2 3 4 5   # a teacher that predicts r times the truth
    python -m bench.distillation_modes compare --seeds 1 2 3 4 5 --write

Each seed is a generated stream, a teacher and students of its own; an arm's difference to no distillation
is paired by seed. Everything is kept in --work, one folder a stream and seed, so that a killed run goes
on at the student it was at, and more seeds or arms add to what is there.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from bench.training_report import machine_line
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings
from recsys.distill.scoring import score_windows
from recsys.distill.settings import PLAIN, AugmentSettings, StudentSettings, StudentsSettings, TeacherSettings
from recsys.distill.students import runs_of, train_runs
from recsys.distill.teacher import train_teacher
from recsys.evaluation.metrics import compute_metrics
from recsys.models.settings import ModelSettings
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings

PARAMS, WORK = Path("params"), Path(".work/distillation_modes")
REPORT = Path("docs/benchmarks/distillation_modes.md")
DONE = "done.json"
TUNING_SEED = 777  # its stream is not judged
FIRST_WINDOW = 4  # of those that judge
SEEN_LESS = 5  # times, in earlier windows of the domain: a cold user or ad
CONFIDENCE = 0.95
METRICS = ("ne", "auc", "gauc", "logloss", "calibration")
STREAM_SEED = 1000  # added to a seed


@dataclass(frozen=True)
class StreamCase:
    """Changes to params/datasets/synthetic.yaml, and how often the teacher publishes."""

    changes: dict[str, float]
    snapshot_every_windows: int = 1


STREAMS = {
    "default": StreamCase({}),
    "shifted": StreamCase({"drift": 0.8, "domain_strength": 0.7}),
    "stale": StreamCase({"drift": 0.8, "domain_strength": 0.7}, snapshot_every_windows=3),
}
PEER = ModelSettings(
    architecture="dcn", embedding_dimension=32, dense_layers=[128, 64], over_layers=[256, 128], cross_layers=3
)  # the teacher's size


def _adapter(kind: str, update: str = "before") -> AdapterSettings:
    return AdapterSettings.model_validate({"kind": kind, "update": update})


# The strengths are those that ``tune`` found; see docs/benchmarks/distillation_modes.md.
ARMS: dict[str, DistillationSettings] = {
    PLAIN: DistillationSettings(mode="none"),
    "shared": DistillationSettings(mode="shared", loss_weight=3.0),
    "affine": DistillationSettings(mode="affine", loss_weight=3.0),
    "AH, beta = alpha = w = 1": DistillationSettings(mode="auxiliary"),
    "AH": DistillationSettings(mode="auxiliary", gradient_scale=10.0),
    "AH + SA, extra head": DistillationSettings(
        mode="auxiliary_adapter", gradient_scale=10.0, adapter=_adapter("extra_head")
    ),
    "AH + SA, replace": DistillationSettings(
        mode="auxiliary_adapter", gradient_scale=10.0, adapter=_adapter("replace")
    ),
    "co-distillation": DistillationSettings(mode="co_distillation", gradient_scale=10.0, peer_model=PEER),
}
SCALES = {"shared": (0.3, 1.0, 3.0, 10.0), "affine": (0.3, 1.0, 3.0, 10.0)}  # of w, where there is no beta
BETAS = (1.0, 3.0, 10.0, 30.0)
LABEL_SCALES = (1.0, 3.0)
BIASES = (1.0, 1.5, 2.0, 3.0)
BIAS_ARMS = {"plain": ARMS[PLAIN], "shared": ARMS["shared"], "AH": ARMS["AH"]}


def tuning_arms() -> dict[str, DistillationSettings]:
    """Every strength that ``tune`` tries, by a name that says it."""
    arms = {PLAIN: ARMS[PLAIN]}
    for arm, weights in SCALES.items():
        arms |= {f"{arm}, w={w:g}": ARMS[arm].model_copy(update={"loss_weight": w}) for w in weights}
    for arm in ("AH", "AH + SA, extra head", "AH + SA, replace", "co-distillation"):
        for alpha in LABEL_SCALES if arm == "AH" else (1.0,):
            changes = {"label_scale": alpha}
            arms |= {
                f"{arm}, beta={beta:g}, alpha={alpha:g}": ARMS[arm].model_copy(
                    update={**changes, "gradient_scale": beta}
                )
                for beta in BETAS
            }
    return arms


@dataclass(frozen=True)
class Lab:
    """One stream with one seed: its folder, and how its models are trained."""

    folder: Path
    case: StreamCase
    seed: int
    rows: int
    ranks: int

    def train(self) -> TrainSettings:
        """params/train.yaml on ``ranks`` ranks."""
        return load_settings(PARAMS / "train.yaml", TrainSettings).model_copy(update={"world_size": self.ranks})

    def prepare(self) -> None:
        """Windows, teacher and scores; what is there already is left."""
        self._once("windows", self._ingest)
        self._once("teacher", self._teach)
        self._once("scores", self._score)

    def students(self, arms: dict[str, DistillationSettings]) -> StudentsSettings:
        """One student a domain, in ``arms``."""
        domains = Schema.load(self.folder / "windows").domains
        settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
        return StudentsSettings(
            model=settings.model,
            seeds=[self.seed],
            students=[StudentSettings(name=domain, domain=domain) for domain in domains],
            distillation=DistillationSettings(head_layers=settings.distillation.head_layers),
            arms=arms,
        )

    def train_students(self, arms: dict[str, DistillationSettings], scores: str, output: str) -> None:
        """Train what is not there yet, one run at a time."""
        settings, train = self.students(arms), self.train()
        for run in runs_of(settings):
            folder = run.folder(self.folder / output)
            described = json.dumps({"distillation": run.distillation.model_dump(), "model": run.model.model_dump()})
            if (folder / DONE).is_file() and (folder / DONE).read_text() == described:
                continue
            arguments = ([run], self.folder / "windows", self.folder / scores, settings, train)
            launch(train_runs, (*arguments, self.folder / output, None), train)
            (folder / DONE).write_text(described)

    def write_biased_scores(self, ratio: float) -> str:
        """A teacher that predicts ``ratio`` times the true probability; the name of its scores folder."""
        name = f"scores-{ratio:g}"
        self._once(name, lambda folder: self._bias(folder, ratio))
        return name

    def _once(self, name: str, make: Callable[[Path], None]) -> None:
        folder = self.folder / name
        if (folder / DONE).is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        (folder / DONE).write_text("{}")

    def _ingest(self, folder: Path) -> None:
        data = load_settings(PARAMS / "data.yaml", DataSettings).model_copy(update={"dataset": "synthetic"})
        dataset = load_settings(PARAMS / "datasets/synthetic.yaml", DatasetSettings)
        assert dataset.synthetic is not None
        changes = {**self.case.changes, "seed": STREAM_SEED + self.seed, "rows": self.rows}
        dataset = dataset.model_copy(update={"synthetic": dataset.synthetic.model_copy(update=changes)})
        (self.folder / "oracle").mkdir(exist_ok=True)
        ingest(data, dataset, folder, self.folder / "oracle")

    def _teacher(self) -> TeacherSettings:
        """params/teacher.yaml without towers, which would need a partition."""
        settings = load_settings(PARAMS / "teacher.yaml", TeacherSettings)
        model = settings.model.model_copy(update={"towers": False})
        every = self.case.snapshot_every_windows
        return settings.model_copy(update={"model": model, "seed": self.seed, "snapshot_every_windows": every})

    def _teach(self, folder: Path) -> None:
        train_teacher(self.folder / "windows", None, self._teacher(), self.train(), folder)

    def _score(self, folder: Path) -> None:
        augment = load_settings(PARAMS / "augment.yaml", AugmentSettings)
        score_windows(
            self.folder / "windows", None, self.folder / "teacher", self._teacher(), augment, self.train(), folder
        )

    def _bias(self, folder: Path, ratio: float) -> None:
        for path in sorted((self.folder / "oracle").glob("*.parquet")):
            probability = (ratio * pl.col("probability")).clip(1e-6, 1 - 1e-6)
            scores = pl.read_parquet(path).select(
                "example_id",
                logit=(probability / (1 - probability)).log().cast(pl.Float32),
                staleness_ms=pl.lit(0, dtype=pl.Int64),
            )
            scores.write_parquet(folder / path.name)


@dataclass(frozen=True)
class Slices:
    """The judged rows of one seed: masks [N] by slice, labels, groups, and logits [N] by model."""

    masks: dict[str, NDArray[np.bool_]]
    labels: NDArray[np.floating]
    groups: NDArray[np.integer]
    logits: dict[str, NDArray[np.floating]]

    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Metrics by model and slice."""
        return {
            model: {
                name: compute_metrics(logits[mask], self.labels[mask], self.groups[mask]).as_dict()
                for name, mask in self.masks.items()
            }
            for model, logits in self.logits.items()
        }


def read_slices(lab: Lab, arms: Iterable[str], output: str) -> Slices:
    """The rows of the windows that judge, all domains, with each arm's, the teacher's and the oracle's logits."""
    schema = Schema.load(lab.folder / "windows")
    frames = []
    for window in schema.windows[FIRST_WINDOW:]:
        name = f"{window.name}.parquet"
        base = pl.read_parquet(lab.folder / "teacher/predictions" / name).rename({"logit": "teacher"})
        frame = base.join(_oracle(lab.folder / "oracle" / name), on="example_id", maintain_order="left")
        frame = frame.join(_times_seen(lab.folder / "windows", window.name), on="example_id", maintain_order="left")
        for arm in arms:
            parts = [
                pl.read_parquet(lab.folder / output / domain / arm / f"seed-{lab.seed}" / "predictions" / name)
                for domain in schema.domains
            ]
            logits = pl.concat(parts).select("example_id", pl.col("logit").alias(arm))
            frame = frame.join(logits, on="example_id", maintain_order="left")
        frames.append(frame)
    whole = pl.concat(frames)
    masks = {"all": np.ones(whole.height, dtype=bool)}
    masks |= {domain: (whole["domain"] == index).to_numpy() for index, domain in enumerate(schema.domains)}
    masks |= {f"{kind}s seen < {SEEN_LESS}": (whole[f"{kind}_seen"] < SEEN_LESS).to_numpy() for kind in ("user", "ad")}
    models = [*arms, "teacher", "oracle"]
    logits = {model: whole[model].to_numpy() for model in models}
    return Slices(masks, whole["label"].to_numpy(), whole["group"].to_numpy(), logits)


def _oracle(path: Path) -> pl.DataFrame:
    probability = pl.col("probability").clip(1e-12, 1 - 1e-12)
    return pl.read_parquet(path).select("example_id", oracle=(probability / (1 - probability)).log())


@cache
def _times_seen(windows_dir: Path, name: str) -> pl.DataFrame:
    """How often each example's user and ad were seen in its domain in earlier windows."""
    columns = ["example_id", "domain", "user_id", "ad_id"]
    names = [window.name for window in Schema.load(windows_dir).windows]
    earlier = [pl.read_parquet(windows_dir / n / "*.parquet", columns=columns) for n in names[: names.index(name)]]
    before, frame = pl.concat(earlier), pl.read_parquet(windows_dir / name / "*.parquet", columns=columns)
    for kind in ("user", "ad"):
        counts = before.group_by("domain", f"{kind}_id").agg(pl.len().alias(f"{kind}_seen"))
        frame = frame.join(counts, on=["domain", f"{kind}_id"], how="left", maintain_order="left")
    return frame.select("example_id", *(pl.col(f"{kind}_seen").fill_null(0) for kind in ("user", "ad")))


def measured(lab: Lab, arms: dict[str, DistillationSettings]) -> dict[str, Any]:
    """Metrics of all models on one seed; trains what is missing."""
    lab.prepare()
    lab.train_students(arms, "scores", "students")
    return read_slices(lab, list(arms), "students").metrics()


def interval(values: NDArray[np.floating]) -> tuple[float, float, float, float | None]:
    """Mean, bounds of Student's interval, and p of the test against 0; bounds NaN and p None with one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan, None
    half = float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    error = float(stats.sem(values))
    p = 2 * float(stats.t.sf(abs(mean) / error, len(values) - 1)) if error > 0 else None
    return mean, mean - half, mean + half, p


def comparison_lines(results: list[dict[str, Any]], part: str) -> list[str]:
    """Markdown: each model on one slice, differences to no distillation paired by seed."""
    lines = [
        "| model | NE | NE change % | low | high | p | AUC change | gAUC change | LogLoss | calibration | transfer ratio | low | high |",  # noqa: E501
        "|---|" + "---:|" * 12,
    ]
    values = {
        model: {metric: np.array([seed[model][part][metric] for seed in results]) for metric in METRICS}
        for model in results[0]
    }
    plain, teacher = values[PLAIN], values["teacher"]
    for model, own in values.items():
        change = interval(100 * (own["ne"] - plain["ne"]) / plain["ne"])
        ratio = interval((plain["ne"] - own["ne"]) / (plain["ne"] - teacher["ne"]))
        cells = [model, f"{own['ne'].mean():.4f}"]
        if model == PLAIN:
            cells += [""] * 4
        else:
            cells += [f"{value:+.3f}" for value in change[:3]] + ["" if change[3] is None else f"{change[3]:.2g}"]
        cells += [f"{(own[m] - plain[m]).mean():+.4f}" if model != PLAIN else "" for m in ("auc", "gauc")]
        cells += [f"{own['logloss'].mean():.4f}", f"{own['calibration'].mean():.3f}"]
        is_arm = model not in (PLAIN, "teacher", "oracle")
        cells += [f"{value:.2f}" for value in ratio[:3]] if is_arm else [""] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def bias_lines(labs: list[Lab]) -> list[str]:
    """Markdown: served calibration under a teacher that predicts r times the truth, and the closed form."""
    weight = ARMS["shared"].loss_weight
    lines = [f"| r | (1 + w r)/(1 + w), w = {weight:g} | {' | '.join(BIAS_ARMS)} |", "|---:|---:|---:|---:|---:|"]
    for ratio in BIASES:
        found: dict[str, list[float]] = {arm: [] for arm in BIAS_ARMS}
        for lab in labs:
            lab.prepare()
            scores = lab.write_biased_scores(ratio)
            lab.train_students(BIAS_ARMS, scores, f"students-{ratio:g}")
            values = read_slices(lab, list(BIAS_ARMS), f"students-{ratio:g}").metrics()
            for arm, own in found.items():
                own.append(values[arm]["all"]["calibration"])
        cells = [f"{np.mean(own):.3f} ± {np.std(own, ddof=min(1, len(own) - 1)):.3f}" for own in found.values()]
        lines.append(f"| {ratio:g} | {(1 + weight * ratio) / (1 + weight):.3f} | {' | '.join(cells)} |")
    return lines


def tuning_lines(lab: Lab) -> list[str]:
    """Markdown: NE of each strength on the tuning stream."""
    results = measured(lab, tuning_arms())
    plain = results[PLAIN]["all"]["ne"]
    lines = ["| arm | NE | NE change % | AUC |", "|---|---:|---:|---:|"]
    for arm, parts in results.items():
        one = parts["all"]
        lines.append(f"| {arm} | {one['ne']:.4f} | {100 * (one['ne'] - plain) / plain:+.3f} | {one['auc']:.4f} |")
    return lines


def main() -> None:
    """Read the command line, run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "compare", "bias"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--stream", choices=list(STREAMS), default="shifted")
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--write", action="store_true", help=f"append the table to {REPORT}")
    given = parser.parse_args()
    assert TUNING_SEED not in given.seeds, f"seed {TUNING_SEED} chose the strengths"

    def lab(seed: int) -> Lab:
        folder = given.work / f"{given.stream}-{given.rows}-{seed}"
        return Lab(folder, STREAMS[given.stream], seed, given.rows, given.ranks)

    title = f"## {given.what}: stream {given.stream} {asdict(STREAMS[given.stream])}, {given.rows:,} rows"
    lines = [title, ""]
    if given.what == "tune":
        lines += [f"Seed {TUNING_SEED}, which does not judge.", "", *tuning_lines(lab(TUNING_SEED))]
    elif given.what == "bias":
        lines += [f"Seeds {given.seeds}.", "", *bias_lines([lab(seed) for seed in given.seeds])]
    else:
        results = [measured(lab(seed), ARMS) for seed in given.seeds]
        lines.append(
            f"Seeds {given.seeds}: a stream, a teacher and students each; {CONFIDENCE:.0%} intervals over them."
        )
        for part in results[0][PLAIN]:
            lines += ["", f"### {part}", "", *comparison_lines(results, part)]
    print("\n".join(lines))
    if given.write:
        heading = "" if REPORT.exists() else "# Ways to distil\n\n" + machine_line() + "\n"
        with REPORT.open("a") as file:
            file.write(heading + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
