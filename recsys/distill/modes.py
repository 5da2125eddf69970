"""Distillation modes: the ways in which a student learns from a teacher, by name.

A mode says what is added to the ranker, which soft label is used and what it needs. Heads, loss,
students and diagnostics ask the mode instead of testing its name, so a new mode made of existing
parts is just one more entry.
"""

from dataclasses import dataclass
from enum import Enum, auto


class SoftHead(Enum):
    """What learns the soft label."""

    SERVING = auto()  # the serving head itself
    MAP = auto()  # an affine map of the serving head's logit
    OWN = auto()  # a separate head beside the serving head


class Teacher(Enum):
    """The source of the soft label."""

    NOBODY = auto()
    SCORES = auto()  # logged by the teacher's snapshots
    PEER = auto()  # from a larger ranker trained with the student


@dataclass(frozen=True)
class Mode:
    """A way to learn from a teacher.

    Attributes:
        teacher: the source of the soft label.
        head: what learns it.
        adapts: whether an adapter corrects the scores to the present.
    """

    teacher: Teacher
    head: SoftHead
    adapts: bool = False


MODES = {
    "none": Mode(Teacher.NOBODY, SoftHead.SERVING),
    "shared": Mode(Teacher.SCORES, SoftHead.SERVING),
    "affine": Mode(Teacher.SCORES, SoftHead.MAP),
    "auxiliary": Mode(Teacher.SCORES, SoftHead.OWN),
    "auxiliary_adapter": Mode(Teacher.SCORES, SoftHead.OWN, adapts=True),
    "co_distillation": Mode(Teacher.PEER, SoftHead.OWN),
}


def known_mode(name: str) -> str:
    """Return ``name`` if it is in MODES.

    Raises:
        ValueError: otherwise.
    """
    if name not in MODES:
        raise ValueError(f"give one of {', '.join(MODES)}")
    return name
