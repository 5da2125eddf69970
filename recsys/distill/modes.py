"""The ways a student learns from a teacher, by the name that settings give them.

What a mode adds to the ranker, what its soft label is and what it needs stand here; heads, loss,
students and diagnostics ask, and test no name. A mode made of these parts is one more entry.
"""

from dataclasses import dataclass
from enum import Enum, auto


class SoftHead(Enum):
    """What learns the soft label."""

    SERVING = auto()  # the serving head itself
    MAP = auto()  # an affine map of the serving head's logit
    OWN = auto()  # a head of its own beside the serving head


class Teacher(Enum):
    """Whose prediction the soft label is."""

    NOBODY = auto()
    SCORES = auto()  # those that the teacher's snapshots have logged
    PEER = auto()  # a larger ranker's, trained with the student


@dataclass(frozen=True)
class Mode:
    """A way to learn from a teacher.

    Attributes:
        teacher: whose prediction the soft label is.
        head: what learns it.
        adapts: whether an adapter brings the scores up to the present.
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
    """``name``, if it is one of MODES.

    Raises:
        ValueError: otherwise.
    """
    if name not in MODES:
        raise ValueError(f"give one of {', '.join(MODES)}")
    return name
