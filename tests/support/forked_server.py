"""The server that ranks are forked from, itself forked from this process: what this one has
imported, ten seconds of it, is not imported again."""

import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing import util
from typing import Any, NoReturn

from recsys.training.launch import start_server

_spawn = util.spawnv_passfds


def fork_the_server() -> None:
    """Start it, while this process has one thread; where it is killed a new one is spawned."""
    util.spawnv_passfds = _fork
    try:
        start_server()
    finally:
        util.spawnv_passfds = _spawn


def in_a_fork(work: Callable[[], Any]) -> int:
    """The id of a child that does ``work`` and ends with its status, None as 0."""
    child = os.fork()
    return child or _do_and_end(work)


def _do_and_end(work: Callable[[], Any]) -> NoReturn:
    status = 1
    try:
        status = work() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _fork(path: Any, arguments: Any, descriptors: Any) -> int:
    """A fork in place of a new interpreter, for multiprocessing's server."""
    if "forkserver" not in str(arguments[-1]):
        return _spawn(path, arguments, descriptors)

    def serve() -> None:
        kept = sorted({0, 1, 2, *descriptors})
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        exec(arguments[-1], {})

    return in_a_fork(serve)
