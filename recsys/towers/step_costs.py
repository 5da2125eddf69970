"""The cost of a training step on hosts connected by a network, flat and with the tower transform.

Volumes follow DMT (arXiv 2403.00877, sections 2 and 3.1): the transform alone sends as many bytes
across hosts as the flat exchange, in fewer and larger messages; tower modules reduce the bytes.
Times follow the alpha-beta model: bytes over bandwidth plus a fixed time per collective and
message, and FLOPs over a rate.
"""

import math
from dataclasses import dataclass, fields
from itertools import pairwise

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from recsys.config import Settings
from recsys.units import FLOAT_BYTES, GIGA, MS_PER_SECOND

ID_BYTES = LENGTH_BYTES = 8  # int64
PEER_ID_BYTES = 4  # as in recsys/towers/ids.py, if no table has more than 2^31 rows
EXCHANGES = 5  # sizes, lengths, ids, outputs, their gradients
OUTPUT_EXCHANGES = 2
# Forward reads a row and writes it out; the fused backward reads a gradient, reads and writes a row
LOOKUP_PASSES = 5
# Exchanged data are packed, sent, received and unpacked in both directions, with half the bytes if
# quantised
WIRE_PASSES = 6
SHUFFLE_PASSES = 8  # steps c and e of the transform read and write everything, forward and backward
TERA = GIGA * 1_000


class TowerCluster(Settings):
    """Hosts and their links from a rank's point of view; gb_s are 10^9 bytes per second per rank.

    Attributes:
        ranks_per_host: ranks per host (the paper's L).
        compute_tflops: rate reached by the dense part.
        step_ms: cost of a step that does not depend on the model: launches, optimisers, losses.
        copy_gb_s: memory bandwidth of look-ups and shuffles.
        inside_gb_s: bandwidth to the other ranks of the host; also the bus bandwidth of a reduction
            inside it.
        across_gb_s: this rank's share of its host's link; infinity: the network costs nothing.
        efficiency: fraction of ``across_gb_s`` that an all-to-all reaches, by the number of ranks
            on other hosts that it goes to; interpolated linearly in the logarithm.
        reduce_gb_s: bus bandwidth of an all-reduce over hosts, by number of ranks; interpolated
            linearly in the logarithm.
        collective_ms: latency of each collective.
        message_ms: latency of each message to another host.
        hidden: network time that is hidden, as a fraction of the time that a rank computes and
            copies: ranks that share cores arrive at an exchange one after the other.
        source: where the figures come from.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # a link may cost nothing

    ranks_per_host: PositiveInt
    compute_tflops: PositiveFloat
    step_ms: NonNegativeFloat = 0.0
    copy_gb_s: PositiveFloat
    inside_gb_s: PositiveFloat
    across_gb_s: PositiveFloat
    efficiency: dict[PositiveInt, PositiveFloat] = Field(default={1: 1.0})
    reduce_gb_s: dict[PositiveInt, PositiveFloat] = Field(min_length=1)
    collective_ms: NonNegativeFloat = 0.0
    message_ms: NonNegativeFloat = 0.0
    hidden: float = Field(default=0.0, ge=0.0)
    source: str

    def efficiency_at(self, ranks: int) -> float:
        """Fraction of the link that an all-to-all to ``ranks`` ranks on other hosts reaches."""
        return _at(self.efficiency, ranks)

    def reduce_at(self, ranks: int) -> float:
        """GB/s of an all-reduce over ``ranks`` ranks."""
        return _at(self.reduce_gb_s, ranks)


@dataclass(frozen=True)
class Work:
    """The work of one rank in a step.

    Attributes:
        batch: examples per rank.
        features: number of features, with one table each.
        dimension: width of an embedding.
        ids: ids per example, over all features.
        lists: number of features with any number of ids per example.
        compact_ids: whether ids travel to the peers as in recsys/towers/ids.py; otherwise as in
            TorchRec.
        flops: FLOPs per example above the tables, forward and backward.
        shared_parameters: number of dense parameters on every rank.
        tower_parameters: number of parameters in all tower modules.
        output_width: numbers per example in all tower outputs; None: the flat exchange.
        forward_bytes: bytes per number on the wire, forward.
        backward_bytes: bytes per number on the wire, backward.
        inside_bytes: bytes per number inside the hosts of a tower, forward plus backward.
        gradient_bytes: bytes per number in the all-reduce of dense gradients.
        imbalance: output of the widest tower over the mean; for the flat exchange see
            :func:`flat_imbalance`.
        ids_ahead: whether the next batch's ids travel while a batch is computed.
    """

    batch: int
    features: int
    dimension: int
    ids: float
    flops: float
    shared_parameters: int
    tower_parameters: int = 0
    output_width: int | None = None
    forward_bytes: float = FLOAT_BYTES
    backward_bytes: float = FLOAT_BYTES
    inside_bytes: float = 2 * FLOAT_BYTES
    gradient_bytes: float = FLOAT_BYTES
    imbalance: float = 1.0
    ids_ahead: bool = True
    lists: int = 0
    compact_ids: bool = True


@dataclass(frozen=True)
class Hosts:
    """``hosts`` hosts with ``ranks_per_host`` ranks each; with towers, each tower is on
    ``hosts_per_tower`` of them."""

    hosts: int
    ranks_per_host: int
    hosts_per_tower: int = 1

    @property
    def ranks(self) -> int:
        """Number of ranks (the paper's G)."""
        return self.hosts * self.ranks_per_host

    @property
    def group(self) -> int:
        """Number of ranks on the hosts of a tower."""
        return self.ranks_per_host * self.hosts_per_tower

    @property
    def groups(self) -> int:
        """Number of groups of hosts, which is that of a rank and its peers."""
        return self.hosts // self.hosts_per_tower


@dataclass(frozen=True)
class Volumes:
    """Bytes that a rank sends in a step, as a mean over ranks, forward and backward, without the
    exchange of sizes.

    Attributes:
        ids_inside: ids and lengths to ranks of the same host.
        ids_across: ids and lengths to other hosts.
        outputs_inside: embeddings, tower outputs and gradients to ranks of the same host.
        outputs_across: embeddings, tower outputs and gradients to other hosts.
        shared_gradients: ring all-reduce over all ranks.
        tower_gradients: ring all-reduce over the ranks of a tower, in fp32.
        copied: bytes read and written by look-ups, around the exchanges across hosts, and by the
            transform's shuffles.
        peers: number of ranks on other hosts to which embeddings or tower outputs go.
        messages: number of messages to other hosts.
        collectives: number of collectives.
    """

    ids_inside: float
    ids_across: float
    outputs_inside: float
    outputs_across: float
    shared_gradients: float
    tower_gradients: float
    copied: float
    peers: int
    messages: int
    collectives: int


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step by activity; ``hidden`` is negative: the hidden part of the network
    time."""

    compute: float
    fixed: float
    copies: float
    ids: float
    inside: float
    across: float
    latency: float
    gradients: float
    hidden: float = 0.0

    @property
    def total(self) -> float:
        """The step's total."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def exchange(self) -> float:
        """Time for exchanging ids, embeddings and tower outputs, without gradients."""
        return self.ids + self.inside + self.across + self.latency + self.hidden


def volumes(work: Work, hosts: Hosts) -> Volumes:
    """The bytes that ``work`` moves on ``hosts``, with table-wise sharding."""
    numbers = work.batch * work.features * work.dimension
    ids = work.batch * (work.ids * ID_BYTES + work.features * LENGTH_BYTES)
    wire = work.forward_bytes + work.backward_bytes
    lookups = LOOKUP_PASSES * numbers * FLOAT_BYTES
    shared = _ring(work.shared_parameters * work.gradient_bytes, hosts.ranks)
    if work.output_width is None:
        inside, across = _parts(hosts.ranks, hosts.ranks_per_host)
        others = hosts.ranks - hosts.ranks_per_host
        return Volumes(
            ids_inside=ids * inside,
            ids_across=ids * across,
            outputs_inside=numbers * wire * inside,
            outputs_across=numbers * wire * across,
            shared_gradients=shared,
            tower_gradients=0.0,
            copied=lookups + WIRE_PASSES * numbers * FLOAT_BYTES,
            peers=others,
            messages=EXCHANGES * others,
            collectives=(EXCHANGES + 1) * (hosts.ranks > 1),
        )
    # Beside: on the other hosts of the same towers
    inside, beside = _parts(hosts.group, hosts.ranks_per_host)
    to_peers = (hosts.groups - 1) / hosts.groups
    neighbours = hosts.group - hosts.ranks_per_host
    peer_ids, exchanges = ids, EXCHANGES
    if work.compact_ids:
        peer_ids = work.batch * (work.ids + work.lists) * PEER_ID_BYTES
        exchanges = OUTPUT_EXCHANGES + 1 + (work.lists > 0)
    return Volumes(
        ids_inside=ids * inside,
        ids_across=peer_ids * to_peers + ids * beside,
        outputs_inside=numbers * work.inside_bytes * inside,
        outputs_across=work.batch * work.output_width * wire * to_peers
        + numbers * work.inside_bytes * beside,
        shared_gradients=shared,
        tower_gradients=_ring(work.tower_parameters / hosts.groups * FLOAT_BYTES, hosts.group),
        copied=lookups
        + (SHUFFLE_PASSES * numbers + WIRE_PASSES * work.batch * work.output_width) * FLOAT_BYTES,
        peers=hosts.groups - 1 + neighbours,
        messages=exchanges * (hosts.groups - 1) + EXCHANGES * neighbours,
        collectives=exchanges * (hosts.groups > 1)
        + (EXCHANGES + 1) * (hosts.group > 1)
        + (hosts.ranks > 1),
    )


def step_time(work: Work, hosts: Hosts, cluster: TowerCluster) -> StepTime:
    """Milliseconds of a step on the busiest rank; ids that travel ahead cost only what computation
    does not hide."""
    moved = volumes(work, hosts)
    busiest = (
        flat_imbalance(work.features, hosts.ranks) if work.output_width is None else work.imbalance
    )
    across_gb_s = cluster.across_gb_s * cluster.efficiency_at(max(moved.peers, 1))
    compute = work.batch * work.flops / (cluster.compute_tflops * TERA) * MS_PER_SECOND
    ids = _ms(moved.ids_inside, cluster.inside_gb_s) + _ms(moved.ids_across, across_gb_s)
    exposed_ids = max(ids - compute, 0.0) if work.ids_ahead else ids
    reduce_gb_s = cluster.reduce_at(hosts.ranks) if hosts.hosts > 1 else cluster.inside_gb_s
    copies = _ms(moved.copied, cluster.copy_gb_s)
    across = busiest * _ms(moved.outputs_across, across_gb_s)
    shared = _ms(moved.shared_gradients, reduce_gb_s)
    return StepTime(
        compute=compute,
        fixed=cluster.step_ms,
        copies=copies,
        ids=exposed_ids,
        inside=_ms(moved.outputs_inside, cluster.inside_gb_s),
        across=across,
        latency=moved.collectives * cluster.collective_ms + moved.messages * cluster.message_ms,
        gradients=shared + _ms(moved.tower_gradients, cluster.inside_gb_s),
        hidden=0.0
        - min(cluster.hidden * (compute + cluster.step_ms + copies), exposed_ids + across + shared),
    )


def flat_imbalance(features: int, ranks: int) -> float:
    """Columns of the fullest rank over the mean, for equal tables in as many equal slices as are
    needed to give every rank one."""
    slices = features
    while slices < ranks:
        slices *= 2
    return math.ceil(slices / ranks) * ranks / slices


def _parts(ranks: int, ranks_per_host: int) -> tuple[float, float]:
    """The fractions of an all-to-all over ``ranks`` ranks that go to other ranks of the host, and
    to other hosts."""
    return (ranks_per_host - 1) / ranks, (ranks - ranks_per_host) / ranks


def _ring(size: float, ranks: int) -> float:
    """Bytes that a rank sends in a ring all-reduce of ``size`` bytes."""
    return 2 * size * (ranks - 1) / ranks


def _ms(size: float, gb_s: float) -> float:
    return size / (gb_s * GIGA) * MS_PER_SECOND


def _at(curve: dict[int, float], ranks: int) -> float:
    """``curve`` at ``ranks``: linear in the logarithm between its points, constant outside."""
    known = sorted(curve)
    if ranks <= known[0]:
        return curve[known[0]]
    for low, high in pairwise(known):
        if ranks <= high:
            part = math.log(ranks / low) / math.log(high / low)
            return curve[low] + part * (curve[high] - curve[low])
    return curve[known[-1]]
