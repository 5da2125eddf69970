"""Read batches ahead in a separate thread."""

import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from typing import TypeVar

Item = TypeVar("Item")
THREAD_NAME = "prefetch"
JOIN_S = 10.0  # a hanging source must not hide the consumer's own error


@dataclass(frozen=True)
class _End:
    """The end of the source; ``error`` is what it raised."""

    error: BaseException | None = None


def prefetched(source: Iterable[Item], depth: int) -> Generator[Item]:
    """The items of ``source`` in order, up to ``depth`` of them read ahead by a thread.

    The thread starts when the first item is requested and ends with the source, with its error, or
    when the iterator is closed; a source with a ``close`` method is closed in the thread. ``depth``
    0 reads without a thread.

    Raises:
        BaseException: what the source raised, after all earlier items, with the source's traceback.
    """
    if depth == 0:
        yield from source
        return
    ready: Queue[Item | _End] = Queue(maxsize=depth)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_read, args=(source, ready, stopped), name=THREAD_NAME, daemon=True
    )
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                break
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        # A thread that waits for room continues, sees that it is stopped, and puts at most one item
        _empty(ready)
        thread.join(JOIN_S)


def _read(source: Iterable[Item], ready: "Queue[Item | _End]", stopped: threading.Event) -> None:
    """The thread's function."""
    error: BaseException | None = None
    try:
        items = iter(source)
        try:
            for item in items:
                if stopped.is_set():
                    break
                ready.put(item)
        finally:
            if hasattr(items, "close"):
                items.close()  # pyright: ignore[reportAttributeAccessIssue]
    except BaseException as raised:
        # SystemExit too: the consumer must not wait for a dead thread
        error = raised
    if not stopped.is_set():
        ready.put(_End(error))


def _empty(queue: "Queue[Item | _End]") -> None:
    with suppress(Empty):
        while True:
            queue.get_nowait()
