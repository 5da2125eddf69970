"""What the collectives of sharded training carry: full or fewer bits per number, by direction.

Neo (Mudigere et al., arXiv 2104.05158) sends pooled embeddings forward in float16 and their
gradients back in bfloat16. The codecs are FBGEMM's, built here because TorchRec's registry turns
bfloat16 into float16 on gloo. FBGEMM's clamp a number that the format cannot hold, which hides that
training diverged; here it ends the run.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from fbgemm_gpu.quantize_comm import QuantizationContext, QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torchrec.distributed.types import (
    CommOp,
    EmbeddingModuleShardingPlan,
    QuantizedCommCodecs,
    ShardingPlan,
)

from recsys.config import InputError
from recsys.planning.tables import SHARDINGS, SMALLEST_COLUMN_SHARD, Kind
from recsys.sharding.settings import CommunicationSettings, ShardingSettings, no_int8

FORMATS = {
    "fp32": SparseType.FP32,
    "fp16": SparseType.FP16,
    "bf16": SparseType.BF16,
    "int8": SparseType.INT8,
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BUCKET = 2**22  # numbers that one all-reduce of gradients carries: 16 MiB in float32
OPERATIONS = (CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER)


class CommunicationOverflowError(RuntimeError):
    """A gradient holds a NaN, an infinity or a number that its format on the wire cannot hold.

    Args:
        setting: of ``communication`` : ``backward`` or ``gradients``.
        precision: its value.
    """

    def __init__(self, setting: str, precision: str) -> None:
        self.setting, self.precision = setting, precision
        super().__init__(
            f"communication.{setting} {precision}: a gradient is NaN or larger than "
            f"{largest_number(precision):.6g}; "
            "lower the learning rates, or use bf16 or fp32"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.setting, self.precision)


@dataclass
class Overflows:
    """Gradients that their format on the wire could not hold.

    An overflow is raised before anything is sent. ``is_late``: what would show it is noted
    instead, so that no step waits for the device; who reads it calls :meth:`taken`.
    """

    is_late: bool = False
    _noted: list[tuple[str, str, Tensor]] = field(default_factory=list)

    def check(self, setting: str, precision: str, sent: Tensor, largest: float) -> None:
        """Look at the gradient ``sent`` under ``communication.setting``, all of which is to lie in
        [-largest, largest].

        Raises:
            CommunicationOverflowError: it does not, and is not to be seen late.
        """
        if not self.is_late:
            if not _fits(sent, largest):
                raise CommunicationOverflowError(setting, precision)
        elif sent.numel():
            self._noted.append((setting, precision, torch.stack(sent.aminmax()) / largest))

    def taken(self) -> list[tuple[str, str, Tensor]]:
        """(setting, precision, [2]: smallest and largest number in parts of the largest that fits)
        of each gradient since the last call."""
        noted, self._noted = self._noted, []
        return noted


class WireCodec(QuantizedCommCodec):
    """FBGEMM's codec for one direction, without its silent clamping.

    Forward, what the format cannot hold, or a sum over ranks that it cannot hold, arrives as NaN,
    so that the loss is NaN too; nothing waits for the device to see it. Backward
    ``overflows`` is told, as the tables' optimisers run on what arrives.

    Args:
        precision: fp32, fp16, bf16 or int8. int8 sends a scale and an offset (8 bytes) each
            ``width`` numbers.
        forward: pooled embeddings, else their gradients.
        width: a divisor of the number of columns of every shard.
        overflows: None: raise at once.
    """

    def __init__(
        self, precision: str, forward: bool, width: int, overflows: Overflows | None = None
    ) -> None:
        super().__init__(FORMATS[precision], is_fwd=forward)
        self._precision, self._width = precision, width
        self._overflows = overflows or Overflows()

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """``input_tensor`` as it is sent: [N] or [B, N] float32 to the format.

        Raises:
            CommunicationOverflowError: backward, a number does not fit, and it is not to be seen
                late.
        """
        if self._precision == "fp32":
            return super().encode(input_tensor, ctx)
        if not self._is_fwd:
            self._overflows.check(
                "backward", self._precision, input_tensor, largest_number(self._precision)
            )
        if self._precision == "int8":
            # An infinity makes the scale of int8 one, and with it the whole row NaN; a NaN it would
            # lose.
            return super().encode(torch.where(input_tensor.isnan(), math.inf, input_tensor), ctx)
        return input_tensor.to(DTYPES[self._precision])  # FBGEMM's bits, an overflow as infinity

    def decode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """What arrived, as float32; what is infinite, as NaN."""
        decoded = super().decode(input_tensor, ctx)
        # x + 0 x has the bits of x, or is NaN; it is a third of what isfinite costs
        return decoded if self._precision == "fp32" else torch.add(decoded, decoded, alpha=0)

    def create_context(self) -> QuantizationContext:
        """A row of int8 is ``width`` numbers; FBGEMM's 32 must divide every rank's part, or it
        crashes."""
        return QuantizationContext(row_dim=self._width)


def wire_codecs(
    communication: CommunicationSettings,
    width: int = SMALLEST_COLUMN_SHARD,
    overflows: Overflows | None = None,
) -> dict[str, QuantizedCommCodecs] | None:
    """Codecs by collective, for TorchRec's sharder; None where all is sent as it is.

    ``width`` divides the columns of every shard, see :func:`shard_width`.
    """
    if communication.forward == communication.backward == "fp32":
        return None
    codecs = QuantizedCommCodecs()
    codecs.forward = cast(Any, WireCodec(communication.forward, True, width, overflows))
    codecs.backward = cast(Any, WireCodec(communication.backward, False, width, overflows))
    return {operation.name: codecs for operation in OPERATIONS}


def shard_width(plan: ShardingPlan) -> int:
    """The largest number of columns that divides those of every shard."""
    widths: list[int] = []
    for module in plan.plan.values():
        assert isinstance(module, EmbeddingModuleShardingPlan)
        for sharding in module.values():
            shards = getattr(sharding.sharding_spec, "shards", [])
            widths += [shard.shard_sizes[1] for shard in shards if shard.shard_sizes[1]]
    return math.gcd(*widths) or SMALLEST_COLUMN_SHARD  # all tables replicated: nothing is sent


def check_kind(settings: ShardingSettings, table: str, kind: Kind) -> None:
    """Refuse int8 where a collective adds up: it has no sum.

    Raises:
        InputError: ``table`` is split as ``kind``, and a direction is int8.
    """
    if not SHARDINGS[kind].rows:
        return
    for direction in ("forward", "backward"):
        if getattr(settings.communication, direction) == "int8":
            raise InputError(
                f"{settings.where(f'communication.{direction}')}: {no_int8(kind, table)}"
            )


def check_kinds(settings: ShardingSettings) -> None:
    """:func:`check_kind` for every kind that ``settings`` fix.

    Raises:
        InputError: as it does.
    """
    kinds: dict[str, Kind] = dict(settings.table_sharding)
    if settings.sharding != "planner":
        kinds["every table"] = settings.sharding
    for table, kind in kinds.items():
        check_kind(settings, table, kind)


def sends_int8(communication: CommunicationSettings) -> bool:
    """Whether a direction is int8, so that the planner has to leave out the kinds of
    :func:`check_kind`."""
    return "int8" in (communication.forward, communication.backward)


def average_gradients(
    gradients: Sequence[Tensor],
    precision: str = "fp32",
    group: ProcessGroup | None = None,
    overflows: Overflows | None = None,
) -> None:
    """Put the mean over the ranks of ``group`` (None: all ranks) in each one's place; a collective
    for every BUCKET numbers, so that what is copied for it stays small.

    Raises:
        CommunicationOverflowError: see :func:`mean_over_ranks`.
    """
    if not gradients or distributed.get_world_size(group) == 1:
        return
    for bucket in _buckets(gradients):
        flat = bucket[0] if len(bucket) == 1 else torch.cat(bucket)
        means = mean_over_ranks(flat, precision, group, overflows).split(
            [part.numel() for part in bucket]
        )
        for part, mean in zip(bucket, means, strict=True):
            part.copy_(mean)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Flat views of ``gradients``, in order, in lists of at most BUCKET numbers."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        # Dense whatever its strides: in the order in which it lies
        flat = gradient.as_strided((gradient.numel(),), (1,))
        for part in flat.split(BUCKET):
            if bucket and sum(one.numel() for one in bucket) + part.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(part)
    if bucket:
        yield bucket


def mean_over_ranks(
    flat: Tensor,
    precision: str = "fp32",
    group: ProcessGroup | None = None,
    overflows: Overflows | None = None,
) -> Tensor:
    """Mean over the ranks of ``group`` (None: all ranks) of ``flat`` [N] float32, sent and added
    up in ``precision``; collective.

    Raises:
        CommunicationOverflowError: it holds what ``precision`` (not fp32) cannot hold; on every
            rank; at once, where ``overflows`` does not say otherwise.
    """
    world_size = distributed.get_world_size(group)
    if precision == "fp32":
        distributed.all_reduce(flat, group=group)
        return flat.div_(world_size)
    # Divided first, so that the sum fits where its parts did
    sent = (flat / world_size).to(DTYPES[precision])
    distributed.all_reduce(sent, group=group)
    mean = sent.float()
    (overflows or Overflows()).check("gradients", precision, mean, largest_number("fp32"))
    return mean


def largest_number(precision: str) -> float:
    """The largest finite number of a format; int8 scales each row, so it has float32's."""
    return torch.finfo(DTYPES.get(precision, torch.float32)).max


def _fits(values: Tensor, largest: float) -> bool:
    """Whether all lie in [-largest, largest]; one pass, which NaN does not."""
    if not values.numel():
        return True
    low, high = values.aminmax()
    return bool(low >= -largest) and bool(high <= largest)
