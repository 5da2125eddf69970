"""The batch size that fits a window's rows."""

import pytest

from recsys.training.batch_size import fitting_batch


@pytest.mark.parametrize(
    ("window_rows", "size"),
    [(0, 64), (1_800, 64), (5_000, 64), (8_000, 128), (20_000, 256), (10**9, 256)],
)
def test_it_takes_about_64_steps_per_window(window_rows: int, size: int) -> None:
    assert fitting_batch(window_rows, largest=256) == size


def test_it_never_exceeds_the_largest() -> None:
    assert fitting_batch(10**6, largest=16) == 16
