"""Hide messages of PyTorch and TorchRec that a user can do nothing about."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = (
    "torch.distributed.elastic",  # reports a rank's failure, which is raised anyway
    "torch.distributed.launcher",
    "torchelastic-events-null",
    "torch.fx._symbolic_trace",
    "torchrec.distributed.comm",  # names the process groups of hosts
    "torchrec.distributed.planner.types",
    "torchrec.distributed.utils",  # about data-parallel tables: what a cache would do
)
# About data-parallel tables: how an operator was registered, not what it computes
DENSE_KERNEL = "fbgemm::dense_embedding"
# TorchRec's own use of deprecated PyTorch functions; other deprecations are shown
DEPRECATED = (
    "Please use DTensor instead",
    r"`torch\.distributed\.\w+` is deprecated",
    "`broadcast_buffers` is deprecated",
)


@contextmanager
def quiet_libraries(names: tuple[str, ...] = LOGGERS) -> Iterator[None]:
    """Hide DEPRECATED, a warning of FBGEMM, and messages below errors from the loggers ``names``;
    other warnings are shown, and errors are raised as usual."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            for message in DEPRECATED:
                warnings.filterwarnings("ignore", message, FutureWarning)
            warnings.filterwarnings("ignore", DENSE_KERNEL, UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
