"""Reading ahead changes neither what is read nor its order, and every way out ends the thread."""

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.prefetch import THREAD_NAME, prefetched

DEADLINE_S = 5.0


class LostError(Exception):
    """Raised by a source."""


class Numbers:
    """Counts what was taken from it; raises at ``fails_at``; knows whether it was closed, and by
    which thread."""

    def __init__(
        self, count: int, fails_at: int | None = None, error: type[BaseException] = LostError
    ) -> None:
        self.count, self.fails_at, self.error = count, fails_at, error
        self.taken = 0
        self.closed_by: list[str] = []

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise self.error(f"at {number}")
                self.taken += 1
                yield number
        finally:
            self.closed_by.append(threading.current_thread().name)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def wait_until_taken(source: Numbers, count: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while source.taken < count:
        assert time.monotonic() < end
        time.sleep(0.001)


@settings(max_examples=60)
@given(count=st.integers(0, 30), depth=st.integers(0, 5), data=st.data())
def test_gives_what_the_source_gives_in_its_order_up_to_its_error_and_leaves_no_thread(
    count: int, depth: int, data: st.DataObject
) -> None:
    fails_at = data.draw(st.none() | st.integers(0, count))
    stops_after = data.draw(st.integers(0, count))
    source, seen = Numbers(count, fails_at), []
    expected = list(range(count if fails_at is None else fails_at))
    with closing(prefetched(source, depth)) as items:
        try:
            for number in items:
                seen.append(number)
                if len(seen) == stops_after:
                    break
        except LostError as error:
            assert fails_at is not None and fails_at < count
            assert str(error) == f"at {fails_at}"
            assert seen == expected
        else:
            assert seen == (
                expected[:stops_after] if 0 < stops_after <= len(expected) else expected
            )
    assert threads() == []
    assert len(source.closed_by) == 1


@pytest.mark.parametrize("depth", [1, 3])
def test_holds_no_more_than_depth_items_beside_the_two_in_hand(depth: int) -> None:
    source = Numbers(100)
    with closing(prefetched(source, depth)) as items:
        assert next(items) == 0
        wait_until_taken(source, depth + 2)
        time.sleep(0.05)
        # One consumed, depth in the queue, one in the thread's hand
        assert source.taken == depth + 2
    assert source.closed_by == [THREAD_NAME]


def test_error_of_the_source_keeps_its_own_traceback() -> None:
    with pytest.raises(LostError, match="at 2") as caught:
        list(prefetched(Numbers(5, fails_at=2), 2))
    functions = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "__iter__" in functions  # where the source raised


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError])
def test_consumer_does_not_wait_for_a_thread_that_is_gone(error: type[BaseException]) -> None:
    with pytest.raises(error, match="at 1"):
        list(prefetched(Numbers(5, fails_at=1, error=error), 2))


def test_reads_while_the_consumer_works() -> None:
    asked, given_back = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        asked.set()
        assert given_back.wait(DEADLINE_S)
        yield 1

    items = prefetched(source(), 1)
    assert next(items) == 0
    assert asked.wait(DEADLINE_S)  # the second item is being made, and nobody has asked for it
    given_back.set()
    assert list(items) == [1]


def test_no_thread_before_the_first_item_is_asked_for() -> None:
    source = Numbers(3)
    prefetched(source, 2)
    assert threads() == [] and source.taken == 0
