"""Windows of different sizes: each is trained on with the batch that fits it."""

from pathlib import Path

import torch
from torch import Tensor

from recsys.data.loader import Batch, WindowReader
from recsys.models.factory import build_ranker
from recsys.progress import RowProgress
from recsys.training.batch_size import SMALLEST_AUTO
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.validation.progressive import DataView, predict_then_train
from tests.support.toy_stream import MODEL, TRAIN

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
