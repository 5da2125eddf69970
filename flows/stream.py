"""Take new windows as they come: evaluate on them, score them, train on them, and publish
models/stream."""

from flows.command_line import (
    apply_overrides,
    hide_tracebacks_of_mistakes,
    run_program,
    say_errors_once,
)
from flows.stream_command import add_arguments, run

if __name__ == "__main__":  # before importing Prefect and torch, so --help answers at once
    run_program(__doc__, add_arguments, run)

import sys
import time

from prefect import flow

from recsys.config import InputError
from recsys.files import BusyError, UnreachableError
from tasks.calling import call, run_stage, tell_server
from tasks.checks import check_settings
from tasks.courier import sending
from tasks.ingest import ingest_windows
from tasks.project import STREAM, STREAM_REPORT, alone, only_one
from tasks.shown import flow_run_name, tell_of_failure
from tasks.stages import commit_stage
from tasks.stream import (
    WATCH_LOCK,
    advance_stream,
    evaluate_stream,
    ingest_is_due,
    log_state,
    partition_is_due,
    publish_stream,
    what_is_missing,
)
from tasks.stream_settings import load_stream_settings
from tasks.towers import partition_features

hide_tracebacks_of_mistakes()  # also where a worker runs the flow


@flow(name="stream", flow_run_name=flow_run_name("stream"), on_failure=[tell_of_failure])
def stream(overrides: dict[str, str] | None = None) -> None:
    """Take all new complete windows; the next run continues one that was stopped at any point.

    Args:
        overrides: values to write into params/ first, e.g. ``{"stream.finished": "true"}``.
    """
    with alone("taking the stream's windows"):
        apply_overrides(overrides or {})
        check_settings()
        if call(ingest_is_due):
            call(ingest_windows)
            call(commit_stage, "ingest")
        missing = call(what_is_missing)
        if missing is not None:
            _say(missing)
            return
        if call(partition_is_due):
            call(partition_features)
            call(commit_stage, "partition")
        with sending():
            while take_windows():
                pass


def take_windows() -> bool:
    """Take as many windows as ``windows_at_once`` allows and publish; returns whether there may be
    more."""
    limit = load_stream_settings().windows_at_once
    taken = call(advance_stream)
    best = call(evaluate_stream, taken)
    call(publish_stream, taken, best)
    _say(
        f"{taken.new} new windows, {len(taken.windows)} in all, the last {taken.windows[-1]}; "
        f"results in {STREAM}, metrics in {STREAM_REPORT}"
    )
    return limit is not None and taken.new == limit


def main(overrides: dict[str, str], stay: bool, tell: bool) -> None:
    """Take the windows that exist; or ``stay`` and watch; or watch and ``tell`` Prefect's
    server."""
    apply_overrides(overrides)
    say_errors_once(with_progress=False)
    if tell:
        tell_of_growth()  # fails before the first look if there is no server
    if stay or tell:
        watch(tell)
    else:
        run_stage(stream)()


def tell_of_growth() -> None:
    """Tell Prefect's server that the log has grown; its automation starts the deployment
    stream/local (see prefect.yaml)."""
    tell_server("log.grew", "towerflow.log")


def watch(tell: bool = False) -> None:
    """Until stopped, run the flow whenever the raw log or the windows have changed and two looks in
    a row agree. With ``tell``, watch only the log; the flow runs elsewhere.

    A mistake in the log is reported in one line, and the next change of the log triggers another
    try.
    """
    seconds = load_stream_settings().poll_seconds
    with only_one(WATCH_LOCK, "watching the log"):
        _say(f"watching the raw log every {seconds:g} s; Ctrl-C stops it")
        take = tell_of_growth if tell else run_stage(stream)
        seen = handled = complaint = None
        while True:
            try:
                state = log_state()
                state = (state[0], []) if tell else state
            except UnreachableError as error:
                complaint = _complain(error, complaint)
                time.sleep(seconds)
                continue
            if state == seen and state != handled:
                try:
                    take()
                except (BusyError, UnreachableError) as error:
                    complaint = _complain(error, complaint)  # the next look tries again
                except InputError as error:
                    complaint, handled = _complain(error, None), state
                else:
                    complaint = None
                    handled = state if tell else (state[0], log_state()[1])
            seen = state
            time.sleep(seconds)


def _complain(error: InputError, before: str | None) -> str:
    """Print what is wrong unless it was printed before; returns the message."""
    if str(error) != before:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return str(error)


def _say(text: str) -> None:
    print(f"stream: {text}", flush=True)
