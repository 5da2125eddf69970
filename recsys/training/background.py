"""Write checkpoints while training continues: a copy in memory, then one write at a time in a
thread of each rank."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from torch import distributed


class BackgroundWriter:
    """Runs one write at a time alongside training; created by all ranks together.

    Attributes:
        group: a process group for a write's collectives, so that they never mix with those of a
            step.
    """

    def __init__(self) -> None:
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup)
        self.group = group
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Run ``write`` in the background, after :meth:`wait`."""
        self._pending = self._executor.submit(write)

    def wait(self) -> None:
        """Wait for the running write, if there is one; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Wait at the end of the block; if the block fails too, its own error is raised with a note
        about the write's."""
        try:
            yield
        except BaseException as error:
            try:
                self.wait()
            except Exception as lost:
                error.add_note(f"The last checkpoint was not written either: {lost}")
            raise
        finally:
            self._executor.shutdown(wait=False)
        self.wait()
