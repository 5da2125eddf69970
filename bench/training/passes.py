"""What passes of the dense part are worth: NE of one student, own rows.

python -m bench.training.passes data/windows/feed data/windows/video --rate 0.1 --seeds 1 2 3
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from bench.shared.progressive import predict_then_train_alone, train_settings
from bench.shared.report import machine_line, print_report
from recsys.config import load_settings
from recsys.data.loader import WindowReader
from recsys.distill.student_settings import StudentsSettings
from recsys.evaluation.metrics import normalized_entropy
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings
from recsys.validation.progressive import PREDICTIONS_DIR

PARAMS = Path("params")
PASSES = [0, 1, 2, 4]  # of the dense part; 0: one pass of everything
ONE_PASS_RATE = 0.002  # of the dense part: that of one pass; passes share it
FIRST_TRAINED = 2  # the first window that a model of more than the base rate predicts


def early_and_judged(windows: Path, folder: Path, first: int) -> tuple[float, float]:
    """NE before the window of index ``first``, and from it on."""
    start = WindowReader(windows).windows[first].start_ms
    trained = WindowReader(windows).windows[FIRST_TRAINED].start_ms
    found = pl.read_parquet(folder / PREDICTIONS_DIR / "*.parquet")
    found = found.filter(pl.col("label").is_not_nan() & (pl.col("event_time") >= trained))
    early, judged = (
        found.filter((pl.col("event_time") < start) == is_early) for is_early in (True, False)
    )
    first_ne, second_ne = (
        normalized_entropy(one["logit"].to_numpy(), one["label"].to_numpy())
        for one in (early, judged)
    )
    return first_ne, second_ne


def main() -> None:
    """Print a table: a row per student, NE on early and judged windows by passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("students", nargs="+", help="WINDOWS_FOLDER/DOMAIN")
    parser.add_argument("--rate", type=float, required=True, help="of the tables")
    parser.add_argument("--first", type=int, default=4, help="index of the first judged window")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    student = load_settings(PARAMS / "students.yaml", StudentsSettings).model
    base = train_settings(load_settings(PARAMS / "train.yaml", TrainSettings).global_batch_size)
    lines = [f"| passes | {' | '.join(map(str, PASSES))} |", f"|---|{'---:|' * len(PASSES)}"]
    for place in map(Path, options.students):
        cells = []
        for passes in PASSES:
            rate = ONE_PASS_RATE / max(passes, 1)
            settings = base.model_copy(
                update={"table_learning_rate": options.rate, "dense_learning_rate": rate}
            )
            found = []
            for seed in options.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    asked = (
                        place.parent,
                        place.name,
                        student,
                        settings,
                        passes,
                        seed,
                        Path(folder),
                    )
                    launch(predict_then_train_alone, asked, settings)
                    found.append(early_and_judged(place.parent, Path(folder), options.first))
            (early, judged), (_, spread) = np.mean(found, axis=0), np.std(found, axis=0)
            cells.append(f"{early:.4f} / {judged:.4f} ({spread:.4f})")
        lines.append(f"| {place.name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    print_report("\n".join([*lines, "", machine_line()]), None)


if __name__ == "__main__":
    main()
