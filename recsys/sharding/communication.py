"""Precision of the collectives in sharded training: bits per number, by direction.

Neo (Mudigere et al., arXiv 2104.05158) sends pooled embeddings forward in float16 and their
gradients back in bfloat16. The codecs are FBGEMM's, built here because TorchRec's registry turns
bfloat16 into float16 on gloo. FBGEMM's codecs clamp numbers that the format cannot represent, which
hides divergence; here such a number ends the run.
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
BUCKET = 2**22  # numbers per all-reduce of gradients: 16 MiB in float32
OPERATIONS = (CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER)


class CommunicationOverflowError(RuntimeError):
    """A gradient contains NaN, infinity or a number too large for its format on the wire.

    Args:
        setting: key of ``communication``: ``backward`` or ``gradients``.
        precision: the key's value.
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
    """Records gradients that were too large for their format on the wire.

    An overflow is raised before anything is sent. With ``is_late`` the evidence is kept instead, so
    that no step waits for the device; the reader calls :meth:`taken`.
    """

    is_late: bool = False
    _noted: list[tuple[str, str, Tensor]] = field(default_factory=list)

    def check(self, setting: str, precision: str, sent: Tensor, largest: float) -> None:
        """Check the gradient ``sent`` under ``communication.setting``, which must be within
        [-largest, largest].

        Raises:
            CommunicationOverflowError: it is not, and checks are not late.
        """
        if not self.is_late:
            if not _fits(sent, largest):
                raise CommunicationOverflowError(setting, precision)
        elif sent.numel():
            self._noted.append((setting, precision, torch.stack(sent.aminmax()) / largest))

    def taken(self) -> list[tuple[str, str, Tensor]]:
        """For each gradient since the last call: (setting, precision, [2]: smallest and largest
        number relative to the largest that fits)."""
        noted, self._noted = self._noted, []
        return noted


class WireCodec(QuantizedCommCodec):
    """FBGEMM's codec for one direction, without silent clamping.

    In the forward direction, a number or a sum over ranks that is too large for the format arrives
    as NaN, so the loss becomes NaN too, without waiting for the device. In the backward direction
    ``overflows`` is told, because the tables' optimisers use what arrives.

    Args:
        precision: fp32, fp16, bf16 or int8. int8 sends a scale and an offset (8 bytes) per
            ``width`` numbers.
        forward: whether it is for pooled embeddings; otherwise for their gradients.
        width: a divisor of the number of columns of every shard.
        overflows: records overflows; None: raise at once.
    """

    def __init__(
        self, precision: str, forward: bool, width: int, overflows: Overflows | None = None
    ) -> None:
        super().__init__(FORMATS[precision], is_fwd=forward)
        self._precision, self._width = precision, width
        self._overflows = overflows or Overflows()

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """Convert ``input_tensor``, [N] or [B, N] float32, to the format in which it is sent.

        Raises:
            CommunicationOverflowError: in the backward direction, a number does not fit, and checks
                are not late.
        """
        if self._precision == "fp32":
            return super().encode(input_tensor, ctx)
        if not self._is_fwd:
            self._overflows.check(
                "backward", self._precision, input_tensor, largest_number(self._precision)
            )
        if self._precision == "int8":
            # An infinity makes int8's scale infinite, and so the whole row NaN; a NaN would be
            # lost.
            return super().encode(torch.where(input_tensor.isnan(), math.inf, input_tensor), ctx)
        # The same bits as FBGEMM, with overflow as infinity
        return input_tensor.to(DTYPES[self._precision])

    def decode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """What arrived, as float32, with infinity as NaN."""
        decoded = super().decode(input_tensor, ctx)
        # x + 0 x has the bits of x, or is NaN; it costs a third of isfinite
        return decoded if self._precision == "fp32" else torch.add(decoded, decoded, alpha=0)

    def create_context(self) -> QuantizationContext:
        """An int8 row has ``width`` numbers; FBGEMM's 32 must divide every rank's part, or it
        crashes."""
        return QuantizationContext(row_dim=self._width)


def wire_codecs(
    communication: CommunicationSettings,
    width: int = SMALLEST_COLUMN_SHARD,
    overflows: Overflows | None = None,
) -> dict[str, QuantizedCommCodecs] | None:
    """Codecs by collective, for TorchRec's sharder; None if everything is sent unchanged.

    ``width`` divides the columns of every shard; see :func:`shard_width`.
    """
    if communication.forward == communication.backward == "fp32":
        return None
    codecs = QuantizedCommCodecs()
    codecs.forward = cast(Any, WireCodec(communication.forward, True, width, overflows))
    codecs.backward = cast(Any, WireCodec(communication.backward, False, width, overflows))
    return {operation.name: codecs for operation in OPERATIONS}


def shard_width(plan: ShardingPlan) -> int:
    """The greatest common divisor of all shards' column counts."""
    widths: list[int] = []
    for module in plan.plan.values():
        assert isinstance(module, EmbeddingModuleShardingPlan)
        for sharding in module.values():
            shards = getattr(sharding.sharding_spec, "shards", [])
            widths += [shard.shard_sizes[1] for shard in shards if shard.shard_sizes[1]]
    # If all tables are replicated, nothing is sent
    return math.gcd(*widths) or SMALLEST_COLUMN_SHARD


def check_kind(settings: ShardingSettings, table: str, kind: Kind) -> None:
    """Refuse int8 where a collective adds up: int8 cannot be summed.

    Raises:
        InputError: ``kind`` adds up over ranks, and a direction is int8.
    """
    if not SHARDINGS[kind].rows:
        return
    for direction in ("forward", "backward"):
        if getattr(settings.communication, direction) == "int8":
            raise InputError(
                f"{settings.where(f'communication.{direction}')}: {no_int8(kind, table)}"
            )


def check_kinds(settings: ShardingSettings) -> None:
    """Run :func:`check_kind` for every kind that ``settings`` fix.

    Raises:
        InputError: as :func:`check_kind`.
    """
    kinds: dict[str, Kind] = dict(settings.table_sharding)
    if settings.sharding != "planner":
        kinds["every table"] = settings.sharding
    for table, kind in kinds.items():
        check_kind(settings, table, kind)


def sends_int8(communication: CommunicationSettings) -> bool:
    """Whether a direction is int8, so that the planner must avoid the kinds refused by
    :func:`check_kind`."""
    return "int8" in (communication.forward, communication.backward)


def average_gradients(
    gradients: Sequence[Tensor],
    precision: str = "fp32",
    group: ProcessGroup | None = None,
    overflows: Overflows | None = None,
) -> None:
    """Replace each gradient by its mean over the ranks of ``group`` (None: all ranks), with a
    collective per BUCKET numbers, so that copies stay small.

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
    """Flat views of ``gradients``, in order, in lists with at most BUCKET numbers."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        # A dense view whatever the strides: in memory order
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
    """The mean of ``flat`` [N] float32 over the ranks of ``group`` (None: all ranks), sent and
    summed in ``precision``; collective.

    Raises:
        CommunicationOverflowError: it contains numbers too large for ``precision`` (other than
            fp32); raised on every rank, and at once unless ``overflows`` is late.
    """
    world_size = distributed.get_world_size(group)
    if precision == "fp32":
        distributed.all_reduce(flat, group=group)
        return flat.div_(world_size)
    # Divided first, so that the sum fits if its terms do
    sent = (flat / world_size).to(DTYPES[precision])
    distributed.all_reduce(sent, group=group)
    mean = sent.float()
    (overflows or Overflows()).check("gradients", precision, mean, largest_number("fp32"))
    return mean


def largest_number(precision: str) -> float:
    """The largest finite number of a format; for int8, which scales each row, that of float32."""
    return torch.finfo(DTYPES.get(precision, torch.float32)).max


def _fits(values: Tensor, largest: float) -> bool:
    """Whether all values are within [-largest, largest], in one pass; NaN is not."""
    if not values.numel():
        return True
    low, high = values.aminmax()
    return bool(low >= -largest) and bool(high <= largest)
