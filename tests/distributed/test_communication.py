"""What gloo ranks send each other with fewer bits, what that does to the weights, and what is
refused."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import embedding_bag
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bench.shared.wire import sent_bytes
from recsys.config import InputError
from recsys.data.loader import Batch
from recsys.data.schema import Schema
from recsys.models.initial_tables import initial_rows
from recsys.models.ranker import table_configs
from recsys.planning.hardware import CPU
from recsys.sharding.communication import CommunicationOverflowError
from recsys.training import engine as engine_module
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.non_finite import NonFiniteLossError
from recsys.training.settings import TrainSettings
from recsys.units import BYTES_PER_GIB, GIGA
from tests.support import launches
from tests.support.batches import random_share, schema_of

SEED = 7
DIMENSION = 16
FEATURES = {"color": (5, "id"), "shop": (40, "id"), "history": (30, "list"), "user": (64, "id")}
TABLE_RATE, DENSE_RATE = 0.5, 0.25
WIRE_ROWS = 1024  # of the batch whose bytes are counted
SIZES = [64, 64, 27]  # of the batches trained on; the last one is uneven
ROUNDOFF = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
# Rounding error of the smallest numbers
SUBNORMAL = {"fp32": 0.0, "fp16": 2.0**-25, "bf16": 2.0**-133}
FLOAT32_NOISE = 1e-6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.uint8}
# Bytes that a rank sends a byte given, among n ranks; gloo's reduce-scatter is an all-reduce.
TRAFFIC: dict[str, Callable[[int], float]] = {
    "all_to_all_single": lambda n: (n - 1) / n,
    "reduce_scatter_tensor": lambda n: 2 * (n - 1) / n,
    "all_gather_into_tensor": lambda n: n - 1,
}
COLLECTIVES = (*TRAFFIC, "reduce_scatter", "all_gather", "all_reduce")
SCHEMA = schema_of(FEATURES)
LARGE_ROWS = 100_000
LARGE = schema_of({"user": (LARGE_ROWS, "id")})
REDUCING = ("row_wise", "table_row_wise", "grid_shard")
KINDS = ("table_wise", "column_wise", "table_column_wise", *REDUCING)
RECIPES = {
    "full": ("fp32", "fp32", "fp32"),
    "fp16": ("fp16", "fp16", "fp16"),
    "neo": ("fp16", "bf16", "bf16"),
    "bf16": ("bf16", "bf16", "bf16"),
    "forward": ("fp16", "fp32", "fp32"),
    "backward": ("fp32", "bf16", "fp32"),
    "int8": ("int8", "bf16", "fp32"),
    "int8 both": ("int8", "int8", "fp32"),
}
# On the one host of two ranks the others are the same
ONE_HOST_KINDS = ("table_wise", "column_wise", "row_wise")
CASES = {
    world_size: [
        (k, recipe)
        for k in kinds
        for recipe in RECIPES
        if "int8" not in recipe or k not in REDUCING
    ]
    for world_size, kinds in ((2, ONE_HOST_KINDS), (4, KINDS))
}
REPEATED = {
    world_size: [c for c in cases if c[1] in ("neo", "int8 both")]
    for world_size, cases in CASES.items()
}
WORLD_CASES = [(world_size, *case) for world_size, cases in CASES.items() for case in cases]


def recipe_settings(world_size: int, kind: str, recipe: str, **changes: Any) -> TrainSettings:
    """Four ranks are two hosts of two."""
    communication = dict(zip(("forward", "backward", "gradients"), RECIPES[recipe], strict=True))
    base = {
        "world_size": world_size,
        "global_batch_size": 64,
        "table_optimizer": "sgd",
        "dense_optimizer": "sgd",
    }
    rates = {"table_learning_rate": TABLE_RATE, "dense_learning_rate": DENSE_RATE}
    hosts = {"ranks_per_host": min(world_size, 2)}
    return TrainSettings.model_validate(
        {**base, **rates, **hosts, "sharding": kind, "communication": communication, **changes}
    )


def share(rows: int, seed: int, rank: int, world_size: int) -> Batch:
    """Rank ``rank``'s share of a seeded global batch, padded with a copy of row 0."""
    return random_share(FEATURES, SCHEMA.dense_width, rows, seed, rank, world_size)


class Linear(nn.Module):
    """A sum of its inputs times constants, so that gradients do not depend on weights and errors
    can be bounded.

    ``factors`` [features, N] multiply the embeddings.
    """

    def __init__(self, table_device: str, factor: float = 1.0, schema: Schema = SCHEMA) -> None:
        super().__init__()
        self.project = nn.Linear(SCHEMA.dense_width, 1, bias=False)
        nn.init.constant_(self.project.weight, 0.5)
        self.embeddings = EmbeddingBagCollection(
            tables=table_configs(schema, DIMENSION), device=torch.device(table_device)
        )
        self.factors = factor * torch.randn(
            len(FEATURES), DIMENSION, generator=torch.Generator().manual_seed(SEED)
        )

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        pooled = self.embeddings(sparse).to_dict()
        vectors = torch.stack([pooled[name] for name in FEATURES], dim=1)  # [B, features, N]
        serving = (vectors * self.factors).sum(dim=(1, 2)) + self.project(dense).squeeze(1)
        return {"serving": serving, "vectors": vectors}


def signed(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """The output, less for the clicked: [B]."""
    return outputs["serving"] * (1 - 2 * batch.label)


@contextmanager
def recorded() -> Iterator[list[tuple[str, torch.dtype, int]]]:
    """(name, dtype, bytes given) of every collective that carries numbers, not ids."""
    calls: list[tuple[str, torch.dtype, int]] = []

    def record(name: str) -> Any:
        collective = getattr(distributed, name)

        def call(*arguments: Any, **options: Any) -> Any:
            position = 0 if name == "all_reduce" else 1
            given: Any = options["input"] if "input" in options else arguments[position]
            parts: list[Tensor] = given if isinstance(given, list) else [given]
            if parts[0].dtype not in (torch.int32, torch.int64):
                calls.append((name, parts[0].dtype, sum(part.nbytes for part in parts)))
            return collective(*arguments, **options)

        return call

    with ExitStack() as stack:
        for name in COLLECTIVES:
            stack.enter_context(mock.patch.object(distributed, name, record(name)))
        yield calls


def sent_while(work: Callable[[], Any]) -> int:
    """Bytes that this rank sends in ``work``, a collective."""
    distributed.barrier()
    before = sent_bytes()
    work()
    distributed.barrier()
    return sent_bytes() - before


def run_cases(cases: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """On every rank: what each case sends for a prediction and for a step, its embeddings, its
    trained weights."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    results = {}
    for kind, recipe in cases:
        settings = recipe_settings(world_size, kind, recipe)
        engine = Engine(Linear("meta"), settings, SEED)
        batch = share(WIRE_ROWS, 100, rank, world_size)
        vectors = engine.outputs(batch)["vectors"]
        for step, rows in enumerate(SIZES):
            engine.train_step(share(rows, step, rank, world_size), signed)
        state = engine.gather_state()
        with recorded() as forward:
            forward_sent = sent_while(partial(engine.outputs, batch))
        with recorded() as step_calls:
            step_sent = sent_while(partial(engine.train_step, batch, signed))
        results[kind, recipe] = {
            "forward": forward,
            "step": step_calls,
            "forward_sent": forward_sent,
            "step_sent": step_sent,
            "vectors": vectors,
            "state": state,
            "bytes": [row["bytes"] for row in engine.plan_summary()],
        }
    return results


@cache
def ran(world_size: int) -> list[dict[tuple[str, str], dict[str, Any]]]:
    """Results of CASES by rank."""
    return run_on_ranks(run_cases, (CASES[world_size],), world_size, 1)


def directions(result: dict[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The collectives of a training step: of embeddings, of their gradients, of the dense
    gradients."""
    numbers = [call for call in result["step"] if call[0] != "all_reduce"]
    count = len(result["forward"])
    return (
        numbers[:count],
        numbers[count:],
        [call for call in result["step"] if call[0] == "all_reduce"],
    )


@pytest.mark.parametrize(("world_size", "kind", "recipe"), WORLD_CASES)
def test_collectives_get_the_formats_asked_for(world_size: int, kind: str, recipe: str) -> None:
    for by_case in ran(world_size):
        for calls, precision in zip(
            directions(by_case[kind, recipe]), RECIPES[recipe], strict=True
        ):
            assert calls
            assert {dtype for _, dtype, _ in calls} == {DTYPES[precision]}


@pytest.mark.parametrize(("world_size", "kind", "recipe"), WORLD_CASES)
def test_sixteen_bits_are_half_the_bytes_and_eight_less(
    world_size: int, kind: str, recipe: str
) -> None:
    width = DIMENSION // (
        min(world_size, 2) if "table_column" in kind else world_size if "column" in kind else 1
    )
    shares = {"fp32": 1.0, "fp16": 0.5, "bf16": 0.5, "int8": (width + 8) / (4 * width)}
    for by_case in ran(world_size):
        whole = directions(by_case[kind, "full"])
        for calls, full, precision in zip(
            directions(by_case[kind, recipe]), whole, RECIPES[recipe], strict=True
        ):
            assert [name for name, _, _ in calls] == [name for name, _, _ in full]
            assert sum(b for _, _, b in calls) == shares[precision] * sum(b for _, _, b in full)


@pytest.mark.parametrize(("world_size", "kind"), dict.fromkeys(case[:2] for case in WORLD_CASES))
def test_the_kernel_sees_the_halving_too(world_size: int, kind: str) -> None:
    """Ids and headers are sent in any case, so the saving is compared with the bytes of the
    embeddings alone."""
    group = 2 if world_size == 4 and kind in ("table_row_wise", "grid_shard") else world_size

    def traffic(direction: int) -> float:
        calls = [
            call
            for by_case in ran(world_size)
            for call in directions(by_case[kind, "full"])[direction]
        ]
        return sum(TRAFFIC[name](group) * given for name, _, given in calls)

    def saved(recipe: str, what: str) -> int:
        return sum(
            by_case[kind, "full"][what] - by_case[kind, recipe][what] for by_case in ran(world_size)
        )

    assert saved("fp16", "forward_sent") == pytest.approx(traffic(0) / 2, rel=0.01)
    assert saved("forward", "step_sent") == pytest.approx(traffic(0) / 2, rel=0.01)
    assert saved("backward", "step_sent") == pytest.approx(traffic(1) / 2, rel=0.01)


def reference_rows(name: str) -> Tensor:
    return initial_rows(SEED, f"table_{name}", FEATURES[name][0], DIMENSION, 0, FEATURES[name][0])


def pooled(batch: Batch, absolute: bool) -> Tensor:
    """Embeddings [B, features, N] by plain PyTorch; ``absolute``: of the absolute values, which
    bound the error."""
    features = []
    for name, bags in batch.sparse.to_dict().items():
        rows = reference_rows(name).abs() if absolute else reference_rows(name)
        features.append(embedding_bag(bags.values(), rows, bags.offsets()[:-1], mode="mean"))
    return torch.stack(features, dim=1)


@pytest.mark.parametrize(
    ("world_size", "kind", "recipe"), [c for c in WORLD_CASES if "int8" not in c[2]]
)
def test_embeddings_arrive_within_the_formats_roundoff(
    world_size: int, kind: str, recipe: str
) -> None:
    precision = RECIPES[recipe][0]
    roundings = world_size if kind in REDUCING else 1  # one sending, and one an addition
    for rank, by_case in enumerate(ran(world_size)):
        batch = share(WIRE_ROWS, 100, rank, world_size)
        error = (by_case[kind, recipe]["vectors"] - pooled(batch, absolute=False)).abs()
        allowed = roundings * (
            ROUNDOFF[precision] * pooled(batch, absolute=True) + SUBNORMAL[precision]
        )
        assert (error <= 1.01 * allowed + FLOAT32_NOISE).all()
        assert precision == "fp32" or error.max() > FLOAT32_NOISE


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("recipe", ["int8", "int8 both"])
def test_eight_bits_arrive_within_half_a_step_of_their_row(recipe: str, world_size: int) -> None:
    for rank, by_case in enumerate(ran(world_size)):
        exact = pooled(share(WIRE_ROWS, 100, rank, world_size), absolute=False)
        step = (exact.amax(dim=2) - exact.amin(dim=2)) / 255
        error = (by_case["table_wise", recipe]["vectors"] - exact).abs()
        assert (error <= 0.51 * step[:, :, None] + FLOAT32_NOISE).all()


def movement() -> dict[str, Tensor]:
    """How far SIZES can move each weight: the learning rate times the sum of absolute gradients."""
    model = Linear("cpu")
    moved = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    model.factors = model.factors.abs()
    for step, rows in enumerate(SIZES):
        batch = share(rows, step, 0, 1)
        model.zero_grad()
        model(batch.dense.abs(), batch.sparse)["serving"].mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            moved[name] += (DENSE_RATE if name == "project.weight" else TABLE_RATE) * parameter.grad
    return moved


@pytest.mark.parametrize(
    ("world_size", "kind", "recipe"), [c for c in WORLD_CASES if c[2] != "int8 both"]
)
def test_trained_weights_differ_by_no_more_than_the_gradients_roundoff(
    world_size: int, kind: str, recipe: str
) -> None:
    state, exact = (ran(world_size)[0][kind, name]["state"] for name in (recipe, "full"))
    _, backward, gradients = RECIPES[recipe]
    for name, moved in movement().items():
        dense = name == "project.weight"
        allowed = world_size * ROUNDOFF[gradients] if dense else 1.01 * ROUNDOFF[backward]
        tiny = sum(SIZES) * (SUBNORMAL[gradients] if dense else SUBNORMAL[backward])
        assert (
            (state[name] - exact[name]).abs() <= allowed * moved + tiny + FLOAT32_NOISE
        ).all(), name
        assert moved.max() > 0.01


@pytest.mark.parametrize("world_size", [2, 4])
def test_two_runs_are_bitwise_equal(world_size: int) -> None:
    first, second = (
        ran(world_size)[0],
        run_on_ranks(run_cases, (REPEATED[world_size],), world_size, 1)[0],
    )
    for case in REPEATED[world_size]:
        for name, value in first[case]["state"].items():
            assert torch.equal(value, second[case]["state"][name]), (case, name)


def test_planned_bytes_do_not_depend_on_it() -> None:
    for kind, recipe in CASES[2]:
        assert ran(2)[0][kind, recipe]["bytes"] == ran(2)[0][kind, "full"]["bytes"]


def large_rows(*arguments: Any) -> Tensor:
    """Initial rows of 40,000: one fits float16, the sum of two does not."""
    return torch.full_like(initial_rows(*arguments), 40_000.0)


def step_with(
    kind: str,
    recipe: str,
    rows: bool = False,
    factor: float = 1.0,
    dense: float = 1.0,
    **changes: Any,
) -> tuple[float, int]:
    """One step on large table rows, factors or dense inputs; its loss and the batches skipped."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    settings = recipe_settings(world_size, kind, recipe, **changes)
    with mock.patch.object(engine_module, "initial_rows", large_rows if rows else initial_rows):
        engine = Engine(Linear("meta", factor), settings, SEED)
    batch = share(WIRE_ROWS, 100, rank, world_size)
    batch.dense.mul_(dense)
    loss = engine.train_step(batch, signed)
    return loss, engine.skipped_batches


HUGE = 1e9


def steps_that_go_on() -> dict[str, tuple[float, int]]:
    """Losses and skipped batches where nothing overflows, or where the settings allow it."""
    return {
        "a row fits": step_with("table_wise", "fp16", rows=True),
        "skipped": step_with("row_wise", "fp16", rows=True, skip_non_finite_batches=True),
        "bf16": step_with("table_wise", "bf16", factor=HUGE, dense=HUGE),
    }


@cache
def went_on() -> list[dict[str, tuple[float, int]]]:
    """Results of steps_that_go_on by rank."""
    return run_on_ranks(steps_that_go_on, (), 2, 1)


def test_a_sum_of_embeddings_that_overflows_stops_the_run() -> None:
    assert math.isfinite(went_on()[0]["a row fits"][0])
    with pytest.raises(
        NonFiniteLossError, match="step 1: the loss is not finite: NaN or infinity in the outputs"
    ):
        run_on_ranks(step_with, ("row_wise", "fp16", True), 2, 1)


def test_an_overflowing_batch_is_skipped_where_the_settings_allow_it() -> None:
    for loss, skipped in (rank["skipped"] for rank in went_on()):
        assert math.isnan(loss)
        assert skipped == 1


def test_gradients_that_overflow_stop_the_run_before_tables_change() -> None:
    with pytest.raises(
        CommunicationOverflowError, match=r"backward fp16: a gradient is NaN or larger than 65504;"
    ):
        run_on_ranks(step_with, ("table_wise", "fp16", False, HUGE), 2, 1)
    with pytest.raises(
        CommunicationOverflowError, match=r"gradients fp16: a gradient is NaN or larger than 65504;"
    ):
        run_on_ranks(step_with, ("table_wise", "fp16", False, 1.0, HUGE), 2, 1)
    assert math.isfinite(went_on()[0]["bf16"][0])


def plan_kinds(settings: TrainSettings) -> set[str]:
    return {
        row["kind"] for row in Engine(Linear("meta", schema=LARGE), settings, SEED).plan_summary()
    }


@pytest.mark.parametrize("kind", REDUCING)
def test_int8_is_refused_where_a_collective_adds_up(kind: str) -> None:
    pattern = (
        rf"^TrainSettings: key 'communication.forward': int8 does not work with {kind} of "
        r"table_\w+, .*table_wise"
    )
    with pytest.raises(InputError, match=pattern):
        run_on_ranks(plan_kinds, (recipe_settings(1, kind, "int8"),), 1, 1)
    fixed = recipe_settings(1, "planner", "int8 both", table_sharding={"table_user": kind})
    with pytest.raises(InputError, match=rf"{kind} of table_user,"):
        run_on_ranks(plan_kinds, (fixed,), 1, 1)


def test_with_int8_the_planner_splits_no_rows_and_says_so_where_it_had_to() -> None:
    whole = {"table_optimizer": "rowwise_adagrad"}  # which splits no columns
    reserved = CPU.reserved_gb * GIGA / BYTES_PER_GIB
    tight = {"memory_gb": reserved + 0.8 * LARGE_ROWS * DIMENSION * 4 / BYTES_PER_GIB, **whole}
    fitting = {"neo": tight, "int8": whole}
    cases = {
        name: (2, (recipe_settings(2, "planner", name, **changes),))
        for name, changes in fitting.items()
    }
    kinds = launches.run_cases(plan_kinds, cases)
    assert kinds["neo"][0] == {"row_wise"}
    assert kinds["int8"][0] == {"table_wise"}
    with pytest.raises(InputError, match="must not split rows because communication is int8"):
        run_on_ranks(plan_kinds, (recipe_settings(2, "planner", "int8", **tight),), 2, 1)
