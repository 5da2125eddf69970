"""Ids to the peers: what TorchRec's exchange gives, bit for bit, in a half to a quarter of its
bytes."""

from typing import Any

import pytest
import torch
from torch import distributed
from torchrec.distributed.dist_data import KJTAllToAll
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.towers.ids import IdExchange
from recsys.towers.traffic import AllToAllRecorder
from recsys.training.launch import run_on_ranks

RANKS, EXAMPLES = 3, 7
GROUPS = [["a", "b", "c"], ["d"], ["e", "a", "f"]]  # a has slices on two groups of hosts
NAMES = ["a", "b", "c", "d", "e", "f"]
MIXES = {"none": set(), "some": {"b", "d", "f"}, "on one group": {"c"}, "all": set(NAMES)}
LARGE = 2**40


def ids_of(rank: int, step: int, lists: set[str], largest: int) -> KeyedJaggedTensor:
    draw = torch.Generator().manual_seed(RANKS * step + rank)
    lengths = torch.ones(len(NAMES), EXAMPLES, dtype=torch.int64)
    for place, name in enumerate(NAMES):
        if name in lists:
            lengths[place] = torch.randint(0, 4, (EXAMPLES,), generator=draw)
    values = torch.randint(0, largest, (int(lengths.sum()),), generator=draw)
    return KeyedJaggedTensor(NAMES, values, lengths=lengths.flatten())


def plain(ids: KeyedJaggedTensor) -> tuple[list[str], list[int], list[int], str]:
    return ids.keys(), ids.values().tolist(), ids.lengths().tolist(), str(ids.values().dtype)


def exchange_both_ways(lists: set[str], dtype: torch.dtype, largest: int) -> dict[str, Any]:
    """On every rank: what two batches' exchanges gave, TorchRec's and ours, begun in turn; bytes to
    the others."""
    rank, group = distributed.get_rank(), distributed.group.WORLD
    assert group is not None
    ours = IdExchange(group, GROUPS, lists, dtype)
    theirs = KJTAllToAll(group, [len(names) for names in GROUPS])
    batches = [ids_of(rank, step, lists, largest) for step in range(2)]
    order = [NAMES.index(name) for names in GROUPS for name in names]
    with AllToAllRecorder() as expected:
        wanted = [plain(theirs(batch.permute(order)).wait().wait()) for batch in batches]
    with AllToAllRecorder() as recorder:
        begun = [ours.start(batch) for batch in batches]
        for one in begun:
            one.send()
        found = [plain(one.arrived()) for one in begun]
    sent = [sum(sum(one.sent) - one.sent[rank] for one in r.found) for r in (expected, recorder)]
    return {"wanted": wanted, "found": found, "sent": sent, "messages": len(recorder.found)}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("dtype", "largest"), [(torch.int32, 2**31), (torch.int64, LARGE)])
def test_the_peers_get_what_torchrecs_exchange_gives(
    mix: str, dtype: torch.dtype, largest: int
) -> None:
    ranks = run_on_ranks(exchange_both_ways, (MIXES[mix], dtype, largest), RANKS, 1)
    for rank in ranks:
        assert rank["found"] == rank["wanted"]
        assert rank["messages"] == (2 if mix == "none" else 4)  # of two batches
    assert max(max(values) for rank in ranks for _, values, _, _ in rank["found"]) > largest // 2


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.int32, 4), (torch.int64, 2)])
def test_single_ids_take_a_half_for_the_lengths_and_a_half_for_the_type(
    dtype: torch.dtype, ratio: int
) -> None:
    # TorchRec's: how much is sent of lengths, ids and examples, of two batches
    sizes = RANKS * 8 * 2 * (RANKS - 1)
    for rank in run_on_ranks(exchange_both_ways, (set(), dtype, 100), RANKS, 1):
        theirs, ours = rank["sent"]
        assert ours * ratio == theirs - sizes


def start(lists: set[str]) -> None:
    group = distributed.group.WORLD
    assert group is not None
    IdExchange(group, [NAMES], lists, torch.int32).start(ids_of(0, 0, {"b"}, 100))


def test_a_feature_without_an_id_in_some_example_has_to_be_a_list() -> None:
    with pytest.raises(
        ValueError, match=r"b: \d+ ids in 7 examples; a feature that is not a list has one each"
    ):
        run_on_ranks(start, (set(),), 1, 1)
