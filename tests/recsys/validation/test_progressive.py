"""Windows of different sizes: each is trained on with the batch that fits it, in passes of the
dense part and of the tables."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.data.loader import Batch, WindowReader
from recsys.models.factory import build_ranker
from recsys.progress import RowProgress
from recsys.training.batch_size import SMALLEST_AUTO
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.training.resume import Checkpoints
from recsys.validation.progressive import DataView, predict_then_train
from tests.support.comparing import same
from tests.support.toy_stream import MODEL, ROWS, TRAIN

LARGEST = 4 * SMALLEST_AUTO  # windows of 300 rows are trained on with a quarter
SETTINGS = TRAIN.model_copy(update={"global_batch_size": LARGEST})


def engine_of(reader: WindowReader) -> Engine:
    return Engine(build_ranker(reader.schema, MODEL, None, 1, "meta"), SETTINGS, 1)


def train_fitted(windows_dir: Path, folder: Path) -> tuple[dict[str, Tensor], list[float]]:
    reader = WindowReader(windows_dir)
    engine, data = engine_of(reader), DataView(reader, LARGEST, fits_windows=True)
    with RowProgress("test", 1, enabled=False) as progress:
        history = predict_then_train(engine, engine.serving_loss, data, folder, progress)
    return engine.gather_state(), [row["train_loss"] for row in history]


def train_by_hand(windows_dir: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Steps of 64 rows; a quarter of their mean is their sum over 256, as AdaGrad counts it."""
    reader = WindowReader(windows_dir)
    engine = engine_of(reader)

    def quarter(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        return engine.serving_loss(outputs, batch) / 4

    means = []
    for window in reader.windows:
        steps = [
            (4 * engine.train_step(batch, quarter), batch.global_rows)
            for batch in reader.label_batches(window, SMALLEST_AUTO, 0, 1)
        ]
        means.append(sum(loss * rows for loss, rows in steps) / sum(rows for _, rows in steps))
    return engine.gather_state(), means


def test_an_example_counts_in_the_sums_of_adagrad_whatever_the_batch_of_its_window(
    windows_dir: Path, tmp_path: Path
) -> None:
    [(found, losses)] = launch(train_fitted, (windows_dir, tmp_path), SETTINGS)
    [(expected, means)] = launch(train_by_hand, (windows_dir,), SETTINGS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    torch.testing.assert_close(losses, means, rtol=1e-6, atol=0)


def test_without_it_every_window_has_the_batch_that_is_given(windows_dir: Path) -> None:
    reader = WindowReader(windows_dir)
    plain, fitted = DataView(reader, LARGEST), DataView(reader, LARGEST, fits_windows=True)
    for window in reader.windows:
        assert (plain.batch_of(window), fitted.batch_of(window)) == (LARGEST, SMALLEST_AUTO)


class KilledError(Exception):
    """Raised in the middle of a pass."""


def train_in_passes(
    windows_dir: Path, folder: Path, killed_at: int | None
) -> tuple[list[dict[str, Tensor]], list[float], int]:
    """The state before training and after each window, losses and the rows of the progress; a run
    that is killed at a step first ends there, and goes on from its last checkpoint."""
    reader = WindowReader(windows_dir)
    data = DataView(reader, SMALLEST_AUTO, dense_passes=2)
    for last_step in [killed_at, None] if killed_at else [None]:
        engine = engine_of(reader)
        checkpoints = Checkpoints(folder / "checkpoints", "test", 1, every_batches=2)
        states = [engine.gather_state()]

        def loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
            if engine.steps == last_step:  # noqa: B023  # it lives no longer than the loop's turn
                raise KilledError
            return engine.serving_loss(outputs, batch)  # noqa: B023

        def note(*_: object) -> None:
            states.append(engine.gather_state())  # noqa: B023

        with suppress(KilledError), RowProgress("test", 1, enabled=False) as progress:
            history = predict_then_train(engine, loss, data, folder, progress, note, checkpoints)
            return states, [row["train_loss"] for row in history], progress.rows
    raise AssertionError("killed twice")


def train_passes_by_hand(windows_dir: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Two passes of the dense part in a random order, then one of the tables in that of time."""
    reader = WindowReader(windows_dir)
    engine, losses = engine_of(reader), []
    for index, window in enumerate(reader.windows):
        taught = reader.label_examples(window)
        for place in (0, 1):
            order = np.random.default_rng([index, place]).permutation(taught.height)
            with engine.learning("dense"):
                for batch in reader.batches(taught[order], SMALLEST_AUTO, 0, 1):
                    engine.train_step(batch, engine.serving_loss)
        with engine.learning("tables"):
            steps = [
                (engine.train_step(batch, engine.serving_loss), batch.global_rows)
                for batch in reader.batches(taught, SMALLEST_AUTO, 0, 1)
            ]
        losses.append(sum(loss * rows for loss, rows in steps) / taught.height)
    return engine.gather_state(), losses


def test_the_dense_part_learns_a_window_on_tables_that_have_not_seen_it(
    windows_dir: Path, tmp_path: Path
) -> None:
    [(states, losses, rows)] = launch(train_in_passes, (windows_dir, tmp_path, None), SETTINGS)
    [(expected, means)] = launch(train_passes_by_hand, (windows_dir,), SETTINGS)
    assert same(states[-1], expected)
    torch.testing.assert_close(losses, means, rtol=1e-6, atol=0)
    taught = sum(
        WindowReader(windows_dir).label_examples(window).height
        for window in WindowReader(windows_dir).windows
    )
    assert rows == 4 * ROWS + 3 * taught


@pytest.mark.parametrize("killed_at", [3, 7, 13])  # in each pass over the first window
def test_a_run_that_is_killed_in_any_pass_ends_the_same(
    windows_dir: Path, tmp_path: Path, killed_at: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    [(states, losses, rows)] = launch(train_in_passes, (windows_dir, whole, None), SETTINGS)
    [found] = launch(train_in_passes, (windows_dir, killed, killed_at), SETTINGS)
    assert same(found[0][-1], states[-1])
    assert (found[1], found[2]) == (losses, rows)
