"""The ladder of teachers goes from a student's size to at least a hundred times its training
FLOPs."""

from pathlib import Path

from bench.distillation.teacher_ladder import ladder

PARAMS = Path(__file__).resolve().parents[3] / "params"


def test_ladder_goes_from_one_to_a_hundred_times_the_student() -> None:
    ratios = [ratio for _, ratio in ladder(PARAMS).values()]
    assert ratios == sorted(ratios)
    assert ratios[0] == 1.0
    assert ratios[-1] >= 100
