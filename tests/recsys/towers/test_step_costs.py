"""The cost model: its limits, its directions, and the paper's volumes."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.towers.step_costs import Hosts, TowerCluster, Work, flat_imbalance, step_time, volumes

CLUSTER = TowerCluster(
    ranks_per_host=4,
    compute_tflops=10.0,
    step_ms=1.0,
    copy_gb_s=100.0,
    inside_gb_s=50.0,
    across_gb_s=5.0,
    efficiency={1: 0.9, 64: 0.5},
    reduce_gb_s={8: 10.0, 64: 5.0},
    collective_ms=0.01,
    message_ms=0.001,
    source="test",
)
FLAT = Work(
    batch=1024,
    features=26,
    dimension=64,
    ids=26.0,
    flops=1e7,
    shared_parameters=1_000_000,
    forward_bytes=2,
    backward_bytes=2,
    gradient_bytes=2,
)
ALONE = replace(FLAT, output_width=26 * 64, ids_ahead=False)
FREE = {
    "copy_gb_s": math.inf,
    "inside_gb_s": math.inf,
    "across_gb_s": math.inf,
    "reduce_gb_s": {8: math.inf},
    "step_ms": 0.0,
    "collective_ms": 0.0,
    "message_ms": 0.0,
}
HOSTS = st.sampled_from(
    [Hosts(t, length, k) for t in (2, 4, 8) for length in (1, 2, 8) for k in (1, 2)]
)
WORKS = st.sampled_from([FLAT, ALONE, replace(ALONE, output_width=128, tower_parameters=50_000)])


@pytest.mark.parametrize("work", [FLAT, ALONE])
def test_infinite_bandwidth_and_no_latency_leave_compute_only(work: Work) -> None:
    time = step_time(work, Hosts(4, 4), CLUSTER.model_copy(update=FREE))
    assert time.total == time.compute == pytest.approx(1024 * 1e7 / 10e12 * 1e3)


@pytest.mark.parametrize("work", [FLAT, ALONE])
def test_one_host_sends_nothing_across(work: Work) -> None:
    moved = volumes(work, Hosts(1, 4))
    assert moved.ids_across == moved.outputs_across == moved.messages == 0
    slow = CLUSTER.model_copy(update={"across_gb_s": 1e-9})
    assert step_time(work, Hosts(1, 4), slow) == step_time(work, Hosts(1, 4), CLUSTER)


def test_the_volumes_of_a_tower_on_two_of_four_hosts_counted_by_hand() -> None:
    """A rank has 1024 rows, 26 features of width 64 and a tower with 32 outputs; its group has two
    ranks on each of two hosts, and it has one peer in the other group."""
    work = replace(ALONE, output_width=32, tower_parameters=50_000, compact_ids=False)
    moved = volumes(work, Hosts(4, 2, 2))
    embeddings, outputs, pairs = 1024 * 26 * 64, 1024 * 32, 1024 * 26 * (8 + 8)
    assert moved.ids_inside == pairs / 4  # one of the four ranks of its group shares its host
    assert moved.ids_across == pairs / 2 + pairs / 2  # one peer; two of four are on the other host
    assert moved.outputs_inside == embeddings * 8 / 4
    assert moved.outputs_across == outputs * (2 + 2) / 2 + embeddings * 8 / 2
    assert moved.tower_gradients == 2 * 3 / 4 * 50_000 / 2 * 4
    # Five passes of the look-ups, eight of the shuffles and six of what crosses, in fp32
    assert moved.copied == ((5 + 8) * embeddings + 6 * outputs) * 4
    assert (moved.peers, moved.messages, moved.collectives) == (3, 5 * 1 + 5 * 2, 5 + 6 + 1)


def test_one_rank_sends_nothing() -> None:
    moved = volumes(FLAT, Hosts(1, 1))
    sent = (
        moved.ids_inside,
        moved.ids_across,
        moved.outputs_inside,
        moved.outputs_across,
        moved.shared_gradients,
    )
    assert sent == (0, 0, 0, 0, 0) and moved.collectives == 0


@given(HOSTS)
def test_the_transform_alone_sends_as_much_across_in_fewer_messages(hosts: Hosts) -> None:
    """The paper's 3.1.2: S (T - 1) / T either way; G - L messages become T - 1."""
    hosts = replace(hosts, hosts_per_tower=1)
    flat, alone = volumes(FLAT, hosts), volumes(replace(ALONE, compact_ids=False), hosts)
    whole = 1024 * 26 * 64 * 4
    assert flat.outputs_across == pytest.approx(whole * (hosts.hosts - 1) / hosts.hosts)
    assert alone.outputs_across == pytest.approx(flat.outputs_across)
    assert alone.ids_across == pytest.approx(flat.ids_across)
    assert flat.messages * (hosts.hosts - 1) == alone.messages * (
        hosts.ranks - hosts.ranks_per_host
    )


@given(HOSTS)
def test_peers_get_ids_in_int32_without_lengths_that_are_1(hosts: Hosts) -> None:
    hosts = replace(hosts, hosts_per_tower=1)
    whole = volumes(replace(ALONE, compact_ids=False), hosts)
    singles, mixed = volumes(ALONE, hosts), volumes(replace(ALONE, ids=46.0, lists=4), hosts)
    # A length and an id of 8 bytes become one of 4
    assert singles.ids_across == pytest.approx(whole.ids_across / 4)
    assert mixed.ids_across == pytest.approx(singles.ids_across * (46 + 4) / 26)
    assert (whole.messages, mixed.messages, singles.messages) == tuple(
        n * (hosts.hosts - 1) for n in (5, 4, 3)
    )


@given(HOSTS, st.sampled_from([2, 4, 8]))
def test_tower_modules_divide_what_crosses_between_peers(hosts: Hosts, ratio: int) -> None:
    hosts = replace(hosts, hosts_per_tower=1)
    narrow = replace(ALONE, output_width=26 * 64 // ratio)
    assert volumes(narrow, hosts).outputs_across == pytest.approx(
        volumes(ALONE, hosts).outputs_across / ratio
    )
    assert volumes(narrow, hosts).outputs_inside == volumes(ALONE, hosts).outputs_inside


@given(WORKS, HOSTS, st.sampled_from(["compute_tflops", "copy_gb_s", "inside_gb_s", "across_gb_s"]))
def test_faster_parts_never_make_a_step_longer(work: Work, hosts: Hosts, part: str) -> None:
    faster = CLUSTER.model_copy(update={part: 2 * getattr(CLUSTER, part)})
    before, after = step_time(work, hosts, CLUSTER).total, step_time(work, hosts, faster).total
    # Ids that travel ahead hide behind the compute: a faster one hides fewer.
    assert after <= before + 1e-9


@given(
    WORKS,
    HOSTS,
    st.sampled_from(["batch", "flops", "features", "shared_parameters", "forward_bytes"]),
)
def test_more_work_never_makes_a_step_shorter(work: Work, hosts: Hosts, part: str) -> None:
    more = replace(work, **{part: 2 * getattr(work, part)})
    assert step_time(more, hosts, CLUSTER).total >= step_time(work, hosts, CLUSTER).total
    if part in ("batch", "flops", "shared_parameters"):
        assert step_time(more, hosts, CLUSTER).total > step_time(work, hosts, CLUSTER).total


def test_towers_win_on_a_slow_network_and_the_transform_alone_loses_on_a_fast_one() -> None:
    hosts, towers = Hosts(4, 4), replace(ALONE, output_width=256)
    slow = CLUSTER.model_copy(update={"across_gb_s": 0.1})
    fast = CLUSTER.model_copy(
        update={"across_gb_s": 1000.0, "collective_ms": 0.0, "message_ms": 0.0}
    )
    assert step_time(towers, hosts, slow).total < step_time(FLAT, hosts, slow).total
    assert step_time(ALONE, hosts, fast).total > step_time(FLAT, hosts, fast).total


def test_ids_that_travel_ahead_cost_what_computing_does_not_hide() -> None:
    ahead = replace(ALONE, ids_ahead=True)
    hosts = Hosts(4, 4)
    assert step_time(ALONE, hosts, CLUSTER).ids > 0 == step_time(ahead, hosts, CLUSTER).ids
    slow = CLUSTER.model_copy(update={"across_gb_s": 0.001})
    in_turn, hidden = step_time(ALONE, hosts, slow), step_time(ahead, hosts, slow)
    assert hidden.ids == pytest.approx(in_turn.ids - in_turn.compute)


def test_what_is_hidden_is_no_more_than_what_the_network_takes() -> None:
    hosts, all_hidden = Hosts(4, 4), CLUSTER.model_copy(update={"hidden": 1e6})
    hidden, seen = step_time(ALONE, hosts, all_hidden), step_time(ALONE, hosts, CLUSTER)
    assert hidden.total == pytest.approx(
        seen.compute + seen.fixed + seen.copies + seen.inside + seen.latency
    )
    some = step_time(ALONE, hosts, CLUSTER.model_copy(update={"hidden": 0.1}))
    assert some.total == pytest.approx(seen.total - 0.1 * (seen.compute + seen.fixed + seen.copies))


def test_curves_are_linear_in_the_logarithm_and_constant_outside() -> None:
    assert CLUSTER.efficiency_at(8) == pytest.approx(0.7)
    assert CLUSTER.efficiency_at(1) == 0.9 and CLUSTER.efficiency_at(500) == 0.5
    assert CLUSTER.reduce_at(2) == 10.0


@pytest.mark.parametrize(
    ("features", "ranks", "expected"), [(26, 2, 1.0), (26, 8, 4 / 3.25), (26, 64, 2 / 1.625)]
)
def test_the_fullest_rank_of_a_flat_plan(features: int, ranks: int, expected: float) -> None:
    assert flat_imbalance(features, ranks) == pytest.approx(expected)
