"""A batch on a device that cannot be read: ``meta`` stands for a GPU that is not waited for."""

import pytest
import torch

from tests.support.one_table import make_batch

META = torch.device("meta")


def test_what_torchrec_asks_of_a_batch_is_counted_before_it_leaves_the_host() -> None:
    batch = make_batch(0)
    expected = make_batch(0).sparse.offset_per_key()
    there = batch.to(META)
    with pytest.raises(RuntimeError):
        there.label.sum().item()
    assert there.sparse.offset_per_key() == expected
    assert there.sparse.length_per_key() == [len(batch.sparse.values())]
