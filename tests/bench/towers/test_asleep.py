"""Only sleep counts as asleep: not work, and not waiting for a core."""

import time
from threading import Event

import pytest

from bench.towers.asleep import SCHEDULER, asleep_seconds

pytestmark = pytest.mark.skipif(
    not SCHEDULER.exists(), reason="this kernel keeps no times of threads"
)
SLEPT_S, WORKED_S = 0.2, 0.2


def test_a_wait_counts_and_work_does_not() -> None:
    before = asleep_seconds()
    Event().wait(SLEPT_S)
    slept = asleep_seconds() - before
    end = time.thread_time() + WORKED_S
    before = asleep_seconds()
    while time.thread_time() < end:
        pass
    worked = asleep_seconds() - before
    assert slept >= 0.95 * SLEPT_S
    assert worked <= 0.25 * WORKED_S
