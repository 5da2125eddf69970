"""The process that sends a run's records to MLflow, so that the run never waits for it.

It outlives its run only until MLflow has taken everything, and ends the MLflow runs that a killed
process left open: ``python -m tasks.courier PROCESS STARTED``.
"""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from recsys.config import load_settings
from recsys.files import write_atomically
from tasks import spool, tracking
from tasks.project import PARAMS
from tasks.tracking_settings import TrackingSettings

logger = logging.getLogger(__name__)
LOG_FILE, TROUBLE_FILE = "courier.log", "trouble"
LOOK_SECONDS = 0.3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0  # between tries while MLflow is away
LAST_TRIES = 2  # once the run has ended
LOAD_SECONDS = 10


@contextmanager
def sending() -> Iterator[None]:
    """Deliver what the block records from a separate process. At the end, wait for it as long as
    params/tracking.yaml allows; a warning says what is still undelivered."""
    if tracking.courier_at_work():
        yield
        return
    settings = load_settings(PARAMS / "tracking.yaml", TrackingSettings)
    spool.SPOOL.mkdir(exist_ok=True)
    (spool.SPOOL / TROUBLE_FILE).unlink(missing_ok=True)
    this = psutil.Process()
    command = [sys.executable, "-m", "tasks.courier", str(this.pid), str(this.create_time())]
    with (spool.SPOOL / LOG_FILE).open("w") as log:
        # A session of its own: Ctrl-C ends the run, and the courier still has to report that
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    interrupted = True
    try:
        with tracking.by_courier():
            yield
        interrupted = False
    finally:
        _wait(process, 0.0 if interrupted else settings.wait_seconds)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until everything is delivered, the courier reports trouble, or nothing was taken for
    ``seconds``."""
    left, since = len(spool.waiting()), time.monotonic()
    while left and not _trouble() and process.poll() is None:
        if time.monotonic() - since > seconds:
            break
        time.sleep(LOOK_SECONDS / 3)
        now = len(spool.waiting())
        left, since = now, time.monotonic() if now < left else since
    if left and seconds:
        why = _trouble() or f"nothing was taken for {seconds:g} s"
        logger.warning(
            "MLflow has not taken %s of this run's records (%s); they wait in %s and are sent with "
            "the next run, or with python -m tasks.courier",
            left,
            why,
            spool.SPOOL,
        )


def _trouble() -> str:
    path = spool.SPOOL / TROUBLE_FILE
    return path.read_text() if path.is_file() else ""


class Loads:
    """Records the machine's load in the runs that ask for it, until they end."""

    def __init__(self) -> None:
        self._monitors: dict[str, Any] = {}

    def follow(self, run: tracking.RunRecord, run_id: str) -> None:
        """Begin or end recording, depending on the status of ``run``."""
        if run.status != tracking.RUNNING:
            monitor = self._monitors.pop(run.key, None)
            if monitor is not None:
                monitor.finish()
        elif run.loads and run.key not in self._monitors:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(run_id, LOAD_SECONDS)
            monitor.start()
            self._monitors[run.key] = monitor


def main(process: int, started: float) -> None:
    """Deliver until the run of ``process`` has ended and everything is delivered, or MLflow is
    away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = load_settings(PARAMS / "tracking.yaml", TrackingSettings)
    loads = Loads().follow if settings.system_metrics else None
    pause, tries = FIRST_PAUSE_S, LAST_TRIES
    while True:
        was_alive = spool.is_alive(process, started)
        trouble = tracking.deliver(loads)
        path = spool.SPOOL / TROUBLE_FILE
        if not trouble:
            path.unlink(missing_ok=True)
            if not was_alive:
                return
            pause = FIRST_PAUSE_S
            time.sleep(LOOK_SECONDS)
            continue
        print(trouble, flush=True)
        write_atomically(path, trouble.encode())
        tries -= not was_alive
        if tries <= 0:
            return
        asleep = time.monotonic()
        while time.monotonic() - asleep < pause and spool.is_alive(process, started):
            time.sleep(LOOK_SECONDS)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def deliver_now() -> None:
    """Deliver what waits, and log what cannot be delivered."""
    trouble = tracking.deliver()
    left = len(spool.waiting())
    print(f"MLflow has not taken {left} records: {trouble}" if trouble else "Nothing waits.")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(int(sys.argv[1]), float(sys.argv[2]))
    else:
        deliver_now()
