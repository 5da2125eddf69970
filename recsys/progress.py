"""Progress of a long step: a bar on a terminal, occasional lines elsewhere, and a file for other
processes."""

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
LINE_INTERVAL_S = 10.0
# Why a model processes more rows than the log has
EVERY_PASS = "each predicted, then trained on in every pass"


def note_live(path: Path | None, step: int, values: Mapping[str, object]) -> None:
    """Add a line to the file ``path``, which others read while a model trains; None: do nothing.

    A line is ``{"time_ms": since 1970, "step": index of the window, "values": {name: number}}``;
    values that are not finite numbers are left out.
    """
    if path is None:
        return
    numbers = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    line = {"time_ms": time.time_ns() // 1_000_000, "step": step, "values": numbers}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


class RowProgress:
    """Counts the rows of a step: ``with RowProgress("teacher", total) as p: p.advance(512)``.

    Shows rows, rows per second and the time left; ``total_rows`` 0 means that the total is unknown.
    ``enabled=False`` (for ranks other than 0) shows nothing. ``counted`` is shown at the end to
    explain why there are more rows than in the log, such as EVERY_PASS.
    """

    def __init__(
        self, label: str, total_rows: int, enabled: bool = True, counted: str = ""
    ) -> None:
        self.label, self.total_rows, self.enabled = label, total_rows, enabled
        self.counted = f" ({counted})" if counted else ""
        self.rows = 0
        self._bar: Progress | None = None

    def __enter__(self) -> "RowProgress":
        self._started = self._last_line = time.monotonic()
        if self.enabled and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.completed:,.0f} rows, {task.fields[rate]} rows/s, left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total_rows or None, rate="-")
        return self

    def note(self, text: str) -> None:
        """Print ``text`` on its own line."""
        if self.enabled:
            self._line(text)

    def expect(self, total_rows: int) -> None:
        """Set the total number of rows once it is known; 0: unknown."""
        self.total_rows = total_rows
        if self._bar is not None:
            self._bar.update(self._task, total=total_rows or None)

    def advance(self, rows: int) -> None:
        """Count ``rows`` more rows."""
        self.rows += rows
        if self.total_rows and self.rows > self.total_rows:
            self.expect(0)  # the expected total was wrong: show none rather than a negative rest
        if not self.enabled:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.rows, rate=f"{self._rate(now):,.0f}")
        elif now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            self._line(self._so_far(self._rate(now)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self.enabled and kind is None:
            now = time.monotonic()
            took = f"{now - self._started:.1f} s, {self._rate(now):,.0f} rows/s"
            self._line(f"{self.rows:,} rows{self.counted} in {took}")

    def _line(self, text: str) -> None:
        print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def _so_far(self, rate: float) -> str:
        if not self.total_rows:  # total unknown, so the time left is too
            return f"{self.rows:,} rows, {rate:,.0f} rows/s"
        left_s = max(self.total_rows - self.rows, 0) / rate
        return f"{self.rows:,} of {self.total_rows:,} rows, {rate:,.0f} rows/s, {left_s:.0f} s left"

    def _rate(self, now: float) -> float:
        return max(self.rows, 1) / max(now - self._started, 1e-6)
