"""The batch size that fits a window's rows."""

import pytest

from recsys.training.batch_size import with_batch_size
from recsys.training.settings import TrainSettings

TRAIN = TrainSettings(global_batch_size=256)


@pytest.mark.parametrize(
    ("window_rows", "size"),
    [(0, 64), (1_800, 64), (5_000, 64), (8_000, 128), (20_000, 256), (10**9, 256)],
)
def test_auto_takes_about_64_steps_per_window(window_rows: int, size: int) -> None:
    assert with_batch_size(TRAIN, "auto", window_rows).global_batch_size == size


def test_auto_never_exceeds_the_training_settings_batch() -> None:
    small = TrainSettings(global_batch_size=16)
    assert with_batch_size(small, "auto", 10**6).global_batch_size == 16


def test_a_number_is_taken_as_it_is() -> None:
    assert with_batch_size(TRAIN, 1_000, 10**6).global_batch_size == 1_000
