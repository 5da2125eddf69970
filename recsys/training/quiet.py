"""Hold back what PyTorch and TorchRec say about themselves, which a user can do nothing about."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = (
    "torch.distributed.elastic",  # reports a rank's failure that is raised anyway
    "torch.distributed.launcher",
    "torchelastic-events-null",
    "torch.fx._symbolic_trace",
    "torchrec.distributed.comm",  # names the process groups of hosts
    "torchrec.distributed.planner.types",
    "torchrec.distributed.utils",  # of data-parallel tables: what a cache would do
)
# Of data-parallel tables: how it was registered, not what it computes
DENSE_KERNEL = "fbgemm::dense_embedding"
# TorchRec's own use of what PyTorch means to drop; any other deprecation is shown
DEPRECATED = (
    "Please use DTensor instead",
    r"`torch\.distributed\.\w+` is deprecated",
    "`broadcast_buffers` is deprecated",
)


@contextmanager
def quiet_libraries(names: tuple[str, ...] = LOGGERS) -> Iterator[None]:
    """Hide DEPRECATED, a warning of FBGEMM and the chatter of the loggers ``names``; any other
    warning is shown, errors are raised as ever."""
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
