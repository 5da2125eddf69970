"""Processes that kill themselves, and what they leave."""

import multiprocessing
import os
import signal

from torch import Tensor

from recsys.training.engine import Engine
from recsys.training.launch import PRELOAD

BOUND_S = 120  # of a process that is waited for


def die_after(steps: int) -> None:
    """Make this process kill itself after ``steps`` optimiser steps."""
    finish_step, done = Engine.finish_step, iter(range(1, steps + 1))

    def counted(self: Engine, loss: Tensor) -> bool:
        updated = finish_step(self, loss)
        if next(done) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return updated

    Engine.finish_step = counted


def kill(target: object, *arguments: object, **changes: object) -> None:
    """Run ``target`` in a process that kills itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=target, args=arguments, kwargs=changes)  # type: ignore[arg-type]
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
