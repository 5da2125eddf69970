"""A log whose label is the parity of two columns, and logs without any such pair."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from recsys.baselines.crosses import CrossChoice, CrossChoiceSettings, choose_crosses
from recsys.baselines.settings import BaselinesSettings
from recsys.config import InputError
from recsys.data.encoder import encoder_of_ids
from recsys.data.schema import CategoricalFeature, Schema, Window
from recsys.evaluation.settings import EvaluateSettings

HOUR, ROWS, VALUES = 3_600_000, 3000, 12
NAMES = ["a", "b", "c", "d"]
FEATURES = [CategoricalFeature(name, VALUES + 1) for name in NAMES]
WINDOWS = [Window(f"w{i}", i * HOUR, (i + 1) * HOUR, ROWS, 0) for i in range(5)]
Draw = dict[str, NDArray[np.int64]]


def write(folder: Path, seed: int, logit: Callable[[Draw], NDArray[np.float64]]) -> Path:
    generator = np.random.default_rng(seed)
    Schema("toy", [], FEATURES, ["a"], WINDOWS, 0.5, {}).save(folder)
    encoder_of_ids([], FEATURES, ["a"], given=True).save(folder)
    for place, window in enumerate(WINDOWS):
        ids = {name: generator.integers(1, VALUES + 1, size=ROWS) for name in NAMES}
        time = window.start_ms + np.arange(ROWS) * (HOUR // ROWS)
        frame = pl.DataFrame(
            {
                "example_id": np.arange(ROWS) + place * ROWS,
                "event_time": time,
                "label_time": time,
                "domain": np.zeros(ROWS, dtype=np.int32),
                "group": generator.integers(200, size=ROWS),
                "label": (generator.random(ROWS) < expit(logit(ids))).astype(np.float32),
                **ids,
            }
        )
        (folder / window.name).mkdir()
        frame.write_parquet(folder / window.name / "part-00000.parquet")
    return folder


def parity(ids: Draw) -> NDArray[np.float64]:
    return 1.5 * (2.0 * ((ids["a"] + ids["c"]) % 2) - 1) + 0.1 * ids["b"]


def main_effects(ids: Draw) -> NDArray[np.float64]:
    return 0.3 * ids["a"] - 0.2 * ids["b"] - 0.1 * ids["c"]


def choose(
    folder: Path,
    columns: list[str] = NAMES,
    known: tuple[tuple[str, str], ...] = (),
    **changes: int,
) -> CrossChoice:
    first = changes.pop("first_evaluation_window", 4)
    return choose_crosses(
        folder,
        columns,
        known,
        EvaluateSettings(first_evaluation_window=first),
        BaselinesSettings(),
        CrossChoiceSettings(**changes),
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_only_the_planted_pair_is_chosen(tmp_path: Path, seed: int) -> None:
    [found] = choose(write(tmp_path, seed, parity)).chosen
    assert found.columns == ("a", "c")
    assert found.ids == VALUES**2
    assert 0 < found.low < found.gain < found.high


@pytest.mark.parametrize("seed", range(1, 7))
def test_main_effects_alone_give_no_cross(tmp_path: Path, seed: int) -> None:
    choice = choose(write(tmp_path, seed, main_effects))
    assert choice.chosen == []
    assert len(choice.tried) == 6


def test_judged_windows_are_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, parity)
    before = choose(folder)
    (folder / WINDOWS[4].name / "part-00000.parquet").unlink()
    assert choose(folder) == before


def test_large_and_known_pairs_are_not_tried(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, parity)
    assert len(choose(folder, largest=VALUES**2 - 1).too_large) == 6
    known = choose(folder, known=(("c", "a"),))
    assert known.chosen == []
    assert len(known.tried) == 5


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, parity)
    with pytest.raises(InputError, match="at least 2, got 1"):
        choose(folder, first_evaluation_window=1)
    with pytest.raises(InputError, match="needs two categorical columns"):
        choose(folder, ["a"])
    with pytest.raises(InputError, match="is a cross already"):
        choose(folder, ["a", "c"], known=(("a", "c"),))
