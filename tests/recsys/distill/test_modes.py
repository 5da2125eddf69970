"""What each mode of distillation is made of, and that its name is known where settings are read."""

from pathlib import Path

import pytest

from recsys.config import InputError, load_settings
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings
from recsys.distill.modes import MODES

NO_HEAD, OWN_HEAD = (False, False), (True, False)
# mode: (reads scores, has a peer), (has a head of its own, one for the adapter's prediction)
PARTS = {
    "none": ((False, False), NO_HEAD),
    "shared": ((True, False), NO_HEAD),
    "affine": ((True, False), NO_HEAD),
    "auxiliary": ((True, False), OWN_HEAD),
    "auxiliary_adapter": ((True, False), (True, True)),
    "co_distillation": ((False, True), OWN_HEAD),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_made_of_these_parts(mode: str) -> None:
    one = DistillationSettings(mode=mode)
    needs, heads = PARTS[mode]
    assert (one.reads_scores, one.has_peer) == needs
    assert (one.has_own_head, one.has_adapted_head) == heads
    assert one.is_plain == (mode == "none")


def test_an_adapter_has_a_head_of_its_own_or_takes_the_teachers_place() -> None:
    for kind, head, replaced in (("extra_head", True, False), ("replace", False, True)):
        adapter = AdapterSettings.model_validate({"kind": kind})
        one = DistillationSettings(mode="auxiliary_adapter", adapter=adapter)
        assert (one.has_adapted_head, one.target_is_adapted) == (head, replaced)
        without = DistillationSettings(mode="auxiliary", adapter=adapter)
        assert not without.has_adapted_head
        assert not without.target_is_adapted


def test_an_unknown_mode_is_one_line_that_lists_the_modes(tmp_path: Path) -> None:
    (tmp_path / "distillation.yaml").write_text("mode: auxilliary\n")
    with pytest.raises(InputError, match=f"key 'mode': .*give one of {', '.join(MODES)}.*auxill"):
        load_settings(tmp_path / "distillation.yaml", DistillationSettings)
