"""Whether the generated stream has something to learn for each kind of model: NE of base rate,
logistic regression, trees, student, teacher and the true probabilities, on the same rows.

python -m bench.data.headroom --seeds 1 2 3          # about a minute per seed
python -m bench.data.headroom --seeds 1 2 3 --write  # and docs/benchmarks/headroom.md
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from bench.shared.progressive import Results, predict_then_train_alone, train_settings
from bench.shared.report import machine_lines, print_report
from recsys.baselines.settings import BaselinesSettings
from recsys.baselines.training import train_baselines
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.settings import DatasetSettings, DataSettings, SyntheticSettings, load_dataset
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.teacher_settings import TeacherSettings
from recsys.evaluation.metrics import normalized_entropy
from recsys.evaluation.model_table import BASELINES
from recsys.evaluation.settings import EvaluateSettings
from recsys.models.settings import ModelSettings
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings
from recsys.validation.progressive import PREDICTIONS_DIR

PARAMS, REPORT = Path("params"), Path("docs/benchmarks/headroom.md")
MODEL_SEED = 1
BASE_RATE, LOGISTIC, TREES = "base rate", "logistic, own rows", "trees, own rows"
LOGISTIC_ALL, TREES_ALL = "logistic, all rows", "trees, all rows"
STUDENT, STUDENT_ALL = "student, own rows", "student, all rows"
TEACHER, ORACLE = "teacher, all rows", "true probabilities"
MODELS = [
    BASE_RATE,
    LOGISTIC,
    TREES,
    STUDENT,
    LOGISTIC_ALL,
    TREES_ALL,
    STUDENT_ALL,
    TEACHER,
    ORACLE,
]
# By what evaluate's tables call them
OF_BASELINES = {
    "base rate": BASE_RATE,
    "logistic (own rows)": LOGISTIC,
    "logistic (all rows)": LOGISTIC_ALL,
    "trees (own rows)": TREES,
    "trees (all rows)": TREES_ALL,
}
NOTES = [
    "NE on the judged windows; lower is better. Each window is predicted before training on it.",
    "Settings are those of params/, with one rank, a teacher without towers, and one model seed.",
    "Own rows are those of the student's domain. Trees are LightGBM, refitted after each window,",
    "with the count and smoothed click rate of every id before the row's window.",
]
Table = dict[str, dict[str, float]]  # NE by model and domain


def default_stream() -> SyntheticSettings:
    """The stream of params/datasets/synthetic.yaml."""
    dataset = load_dataset(load_settings(PARAMS / "data.yaml", DataSettings), PARAMS / "datasets")
    assert dataset.synthetic is not None
    return dataset.synthetic


def headroom(stream: SyntheticSettings, folder: Path) -> Table:
    """NE of each model by the students' domains on the judged windows of ``stream``, which is made
    in ``folder``."""
    dataset = DatasetSettings(format="synthetic", synthetic=stream)
    windows, oracle = folder / "windows", folder / "oracle"
    ingest(load_settings(PARAMS / "data.yaml", DataSettings), dataset, windows, oracle)
    train_baselines(
        windows, load_settings(PARAMS / "baselines.yaml", BaselinesSettings), folder / "baselines"
    )
    students = load_settings(PARAMS / "students.yaml", StudentsSettings)
    teacher = load_settings(PARAMS / "teacher.yaml", TeacherSettings).model
    truth = pl.read_parquet(oracle / "*.parquet")
    of_all = {
        STUDENT_ALL: ranker(windows, students.model, None, folder / "student"),
        TEACHER: ranker(windows, teacher.model_copy(update={"towers": False}), None, folder / "t"),
        ORACLE: truth.select(
            "example_id", logit=(pl.col("probability") / (1 - pl.col("probability"))).log()
        ),
    }
    for name, path in BASELINES.items():
        of_all[OF_BASELINES[name]] = predictions(folder / "baselines" / path)
    schema = WindowReader(windows).schema
    first = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings).first_evaluation_window
    table: Table = {model: {} for model in MODELS}
    for student in students.students:
        own = ranker(windows, students.model, student.domain, folder / student.name)
        judged = own.filter(pl.col("event_time") >= schema.windows[first].start_ms)
        rows = judged.select("example_id", "label")
        for model, found in (of_all | {STUDENT: own}).items():
            both = rows.join(found.select("example_id", "logit"), on="example_id")
            assert both.height == rows.height
            columns = (both[name].cast(pl.Float64).to_numpy() for name in ("logit", "label"))
            table[model][student.name] = normalized_entropy(*columns)
    return table


def predictions(folder: Path) -> pl.DataFrame:
    """Those of all windows in ``folder``."""
    return pl.read_parquet(folder / PREDICTIONS_DIR / "*.parquet")


def ranker(windows: Path, model: ModelSettings, domain: str | None, folder: Path) -> pl.DataFrame:
    """Predictions of a ranker that learns the rows of ``domain`` (None: of all), made in
    ``folder``."""
    train = train_settings(load_settings(PARAMS / "train.yaml", TrainSettings).global_batch_size)
    passes = load_settings(PARAMS / "students.yaml", StudentsSettings).dense_passes
    asked = (windows, domain, model, train, passes, MODEL_SEED, folder)
    launch(predict_then_train_alone, asked, train)
    return predictions(folder)


@dataclass(frozen=True)
class Margin:
    """``better`` must have an NE lower by more than ``percent`` than the best of ``than``."""

    better: str
    than: tuple[str, ...]
    percent: float

    def measured(self, table: Table, domain: str) -> float:
        """By how many percent it is lower."""
        best = min(table[model][domain] for model in self.than)
        return 100.0 * (1.0 - table[self.better][domain] / best)


MARGINS = [
    Margin(LOGISTIC, (BASE_RATE,), 0.0),
    Margin(TREES, (BASE_RATE,), 0.0),
    Margin(STUDENT, (LOGISTIC, TREES), 0.5),
    Margin(STUDENT, (LOGISTIC,), 1.0),
    Margin(TEACHER, (STUDENT,), 1.5),
    Margin(TEACHER, (LOGISTIC_ALL, TREES_ALL), 1.0),
    Margin(ORACLE, (TEACHER,), 0.0),
]


def report(tables: dict[int, Table]) -> str:
    """NE of each model, and each margin, by seed of the stream, in Markdown."""
    seeds = list(tables)
    domains = list(tables[seeds[0]][STUDENT])
    lines: list[str] = []
    for domain in domains:
        lines += [
            f"## {domain}",
            "",
            f"| NE | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |",
            f"|---|{'---:|' * (len(seeds) + 1)}",
        ]
        for model in MODELS:
            found = [tables[seed][model][domain] for seed in seeds]
            cells = [f"{value:.4f}" for value in [*found, float(np.mean(found))]]
            lines.append(f"| {model} | {' | '.join(cells)} |")
        lines += [
            "",
            f"| lower by, % | required | {' | '.join(f'seed {seed}' for seed in seeds)} | holds |",
            f"|---|---:|{'---:|' * (len(seeds) + 1)}",
        ]
        for margin in MARGINS:
            found = [margin.measured(tables[seed], domain) for seed in seeds]
            held = sum(value > margin.percent for value in found)
            cells = [f"{margin.percent:g}", *(f"{value:.2f}" for value in found)]
            lines.append(
                f"| {margin.better}, than {' and '.join(margin.than)} | {' | '.join(cells)} | "
                f"{held} of {len(seeds)} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Read the command line; measure each seed, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[default_stream().seed])
    parser.add_argument("--results", type=Path, help="JSON that a later call goes on from")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    given = parser.parse_args()
    results = Results(given.results) if given.results else None
    tables: dict[int, Table] = {}
    for seed in given.seeds:
        stream = default_stream().model_copy(update={"seed": seed})

        def measure(stream: SyntheticSettings = stream) -> Table:
            with tempfile.TemporaryDirectory() as folder:
                return headroom(stream, Path(folder))

        tables[seed] = results.get(str(seed), measure) if results else measure()
    seeds = " ".join(str(seed) for seed in given.seeds)
    command = f"python -m bench.data.headroom --seeds {seeds} --write"
    title = "What the generated stream has for each kind of model to learn"
    text = "\n".join([*machine_lines(title, command, {}), "", *NOTES, "", report(tables)])
    print_report(text, REPORT if given.write else None)


if __name__ == "__main__":
    main()
