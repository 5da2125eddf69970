"""Codecs of the wire in one process: roundoff, overflow, rows of int8, and what the planner makes
of them."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.types import CommOp, ModuleSharder
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recsys.sharding.communication import CommunicationOverflowError, WireCodec, wire_codecs
from recsys.sharding.plan import BagSharder
from recsys.sharding.settings import CommunicationSettings
from recsys.training.settings import TrainSettings

ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126}
WIDTH = 8
REDUCED = ("fp16", "bf16", "int8")


def arrived(precision: str, values: Tensor, forward: bool = True) -> Tensor:
    codec = WireCodec(precision, forward, WIDTH)
    context = codec.create_context()
    return codec.decode(codec.encode(values.flatten(), context), context).view_as(values)


@given(st.lists(st.floats(-60_000, 60_000, width=32), min_size=1))
@pytest.mark.parametrize("precision", ROUNDOFF)
def test_error_is_at_most_the_unit_roundoff(precision: str, values: list[float]) -> None:
    exact = torch.tensor(values)
    allowed = ROUNDOFF[precision] * exact.abs().clamp(min=SMALLEST_NORMAL[precision])
    assert ((arrived(precision, exact) - exact).abs() <= allowed).all()


@given(st.lists(st.floats(-100, 100, width=32), min_size=WIDTH, max_size=WIDTH))
def test_eight_bits_are_off_by_half_a_step_of_their_row(values: list[float]) -> None:
    exact = torch.tensor([values, [0.0] * WIDTH])
    step = (exact.amax(dim=1) - exact.amin(dim=1)) / 255
    assert ((arrived("int8", exact) - exact).abs() <= 0.51 * step[:, None] + 1e-5).all()


def test_full_precision_is_untouched() -> None:
    values = torch.tensor([1e-40, math.inf, 1 / 3])
    assert torch.equal(arrived("fp32", values), values)


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_arrives_as_nan_forward_and_stops_backward(
    precision: str, bad: float
) -> None:
    values = torch.ones(2, WIDTH)
    values[0, 3] = bad
    there = arrived(precision, values)
    assert there[0, 3].isnan()
    assert there[1].isfinite().all()
    with pytest.raises(
        CommunicationOverflowError,
        match=f"communication.backward {precision}: a gradient is NaN or",
    ):
        arrived(precision, values, forward=False)


def test_a_number_above_the_largest_of_float16_is_not_clamped() -> None:
    assert arrived("fp16", torch.tensor([65_504.0])) == 65_504.0
    assert arrived("fp16", torch.tensor([65_505.0])) == 65_504.0  # the nearest
    assert arrived("fp16", torch.tensor([65_520.0, -1e6])).isnan().all()
    with pytest.raises(
        CommunicationOverflowError, match="larger than 65504; lower the learning rates, or use bf16"
    ):
        arrived("fp16", torch.tensor([-1e6]), forward=False)
    assert arrived("bf16", torch.tensor([-(2.0**20)]), forward=False) == -(2.0**20)


def test_an_infinite_sum_over_ranks_arrives_as_nan() -> None:
    assert WireCodec("fp16", True, WIDTH).decode(
        torch.tensor([math.inf, 1.0]).half()
    ).isnan().tolist() == [True, False]


def test_nothing_to_send_is_sent() -> None:
    for precision in ("fp32", *REDUCED):
        assert arrived(precision, torch.empty(0, WIDTH)).numel() == 0


def communication(forward: str, backward: str) -> CommunicationSettings:
    return CommunicationSettings.model_validate({"forward": forward, "backward": backward})


def test_bfloat16_stays_bfloat16_and_full_precision_needs_no_codec() -> None:
    assert wire_codecs(TrainSettings().communication) is None
    registry = wire_codecs(communication("bf16", "fp32"))
    assert registry is not None
    for operation in (CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER):
        codecs = registry[operation.name]
        assert (codecs.forward.quantized_dtype, codecs.backward.quantized_dtype) == (
            torch.bfloat16,
            torch.float32,
        )


@pytest.mark.parametrize(
    "changes", [{"forward": "fp8"}, {"backward": "mx4"}, {"gradients": "int8"}]
)
def test_other_formats_are_not_offered(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CommunicationSettings.model_validate(changes)


def shards(settings: CommunicationSettings) -> list[Any]:
    """What TorchRec's planner thinks of each kind of sharding of a table on four ranks."""
    config = EmbeddingBagConfig(
        num_embeddings=10_000, embedding_dim=32, name="t", feature_names=["f"]
    )
    enumerator = EmbeddingEnumerator(
        Topology(world_size=4, compute_device="cpu"),
        batch_size=128,
        constraints={
            "t": ParameterConstraints(sharding_types=["table_wise", "row_wise", "table_row_wise"])
        },
    )
    module = EmbeddingBagCollection([config], device=torch.device("meta"))
    sharder = BagSharder(qcomm_codecs_registry=wire_codecs(settings))
    return enumerator.enumerate(module, [cast(ModuleSharder[nn.Module], sharder)])


def test_the_planner_counts_the_same_memory_and_less_time() -> None:
    full, reduced = (shards(communication(*pair)) for pair in (("fp32", "fp32"), ("fp16", "bf16")))
    assert len(full) == len(reduced) == 3
    for one, other in zip(full, reduced, strict=True):
        assert [s.storage for s in one.shards] == [s.storage for s in other.shards]
        assert other.total_perf < one.total_perf
