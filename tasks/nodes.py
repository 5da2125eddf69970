"""Allow one run at a time, whose machines may train together."""

from collections.abc import Iterator
from contextlib import contextmanager

from recsys.config import load_settings
from recsys.training.settings import TrainSettings
from tasks.project import PARAMS, alone


@contextmanager
def alone_but_for_nodes(doing: str) -> Iterator[None]:
    """As :func:`tasks.project.alone`, but shared by the nodes of one launch (params/train.yaml).

    Raises:
        BusyError: another process writes; nothing is written here.
    """
    nodes = load_settings(PARAMS / "train.yaml", TrainSettings).nodes.count
    with alone(doing, shared=nodes > 1):
        yield
