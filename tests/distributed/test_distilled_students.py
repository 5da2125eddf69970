"""Adapter, co-distillation and diagnostics on several ranks: those of plain loops, the overlapped
pipeline's bits."""

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_

from recsys.data.loader import Batch
from recsys.distill.adapter import ScoreNetwork, StudentAdapter
from recsys.distill.diagnostics import DistillationDiagnostics
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings
from recsys.distill.heads import PEER_TABLE_PREFIX, DistilledRanker
from recsys.distill.losses import DistillationLoss
from recsys.models.factory import build_ranker
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.overlap import load_ahead, train_batches
from tests.support.launches import run_cases
from tests.support.sharded import MODEL, SCHEMA, SEED, share, train_settings

# Rows of the global batches; on 4 ranks two have no row of the fourth
SIZES = [32, 13, 32, 2, 32, 7]
BAD = 4  # the batch with a NaN in test_overlapped_...
CLIP = 0.02
SCHEMA_OF_TWO = replace(SCHEMA, tasks=["click", "conversion"], further_base_rates=[0.4])
PEER = MODEL.model_copy(
    update={"embedding_dimension": 2 * MODEL.embedding_dimension, "over_layers": [16, 8]}
)


def with_mode(mode: str, update: str = "before", kind: str = "extra_head") -> DistillationSettings:
    adapter = AdapterSettings.model_validate(
        {"update": update, "kind": kind, "learning_rate": 0.05}
    )
    values = {
        "mode": mode,
        "head_layers": [6],
        "gradient_scale": 3.0,
        "adapter": adapter,
        "peer_model": PEER,
    }
    return DistillationSettings.model_validate(values)


def scored(batch: Batch) -> Batch:
    """``batch`` with scores that follow from each row alone, missing on other rows for each task;
    only the clicked rows have a conversion."""
    batch.score = batch.dense.sum(dim=1) - 2.0
    batch.score[batch.dense[:, 0] < -1.0] = math.nan
    conversion = (batch.dense[:, 1] > 0).float()
    batch.further_labels = {"conversion": torch.where(batch.label == 1, conversion, math.nan)}
    score = torch.where(batch.dense[:, 1] > 1.0, math.nan, batch.dense[:, 0] - 1.0)
    batch.further_scores = {"conversion": score}
    return batch


def batches(bad: int | None = None) -> Iterator[Batch]:
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    for step, rows in enumerate(SIZES):
        batch = scored(share(rows, step, rank, world_size))
        if step == bad and rank == world_size - 1:
            batch.dense[0, 1] = math.nan
            batch.score[0] = 1.0
        yield batch


def student(
    settings: DistillationSettings, changes: dict[str, Any]
) -> tuple[Engine, DistillationLoss]:
    train = train_settings(distributed.get_world_size(), **changes)
    ranker, peer, adapter = build_ranker(SCHEMA_OF_TWO, MODEL, None, SEED, "meta"), None, None
    if settings.has_peer:
        peer = build_ranker(SCHEMA_OF_TWO, PEER, None, SEED, "meta", PEER_TABLE_PREFIX)
    if settings.way.adapts:
        adapter = StudentAdapter(
            settings, train, SEED, distributed.get_world_size(), ["conversion"]
        )
    engine = Engine(
        DistilledRanker(ranker, settings, SEED, 0.3, peer, [0.4]), train, SEED, side=adapter
    )
    return engine, DistillationLoss(settings, adapter)


def side(engine: Engine) -> dict[str, Any]:
    return copy.deepcopy(engine.state().get("side", {}))


def train(
    settings: DistillationSettings, changes: dict[str, Any], bad: int | None = None
) -> dict[str, Any]:
    engine, loss = student(settings, changes)
    steps = train_batches(engine, load_ahead(engine, batches(bad)), loss)
    losses = [float(value) for _, value in steps]
    found = {"losses": losses, "state": engine.gather_state(), "side": side(engine)}
    return found | {"counts": (engine.steps, engine.skipped_batches)}


def reference_adapter(settings: DistillationSettings, task: str) -> dict[str, Tensor]:
    """Plain PyTorch on whole batches of one task."""
    network = ScoreNetwork(settings.adapter.hidden_layers, SEED)
    adam = torch.optim.Adam(network.parameters(), lr=settings.adapter.learning_rate)
    for step, rows in enumerate(SIZES):
        batch = scored(share(rows, step, 0, 1))
        batch = batch if task == "serving" else batch.of_task(task)
        known = ~torch.isnan(batch.score) & ~torch.isnan(batch.label)
        adam.zero_grad()
        losses = binary_cross_entropy_with_logits(
            network(batch.score[known]), batch.label[known], reduction="sum"
        )
        (losses / rows).backward()
        clip_grad_norm_(network.parameters(), CLIP)
        adam.step()
    return network.state_dict()


UPDATES = ("before", "after")


@pytest.fixture(scope="module")
def adapters() -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Results by rank, by when the adapter is updated and by number of ranks."""
    changes = {"dense_clip_norm": CLIP}
    cases = itertools.product(UPDATES, (1, 4))
    return run_cases(
        train,
        {(u, ranks): (ranks, (with_mode("auxiliary_adapter", u), changes)) for u, ranks in cases},
    )


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("update", UPDATES)
def test_adapter_of_several_ranks_is_that_of_a_plain_loop(
    update: str, world_size: int, adapters: dict[tuple[str, int], list[dict[str, Any]]]
) -> None:
    for task in ("serving", "conversion"):
        expected = reference_adapter(with_mode("auxiliary_adapter", update), task)
        for found in adapters[update, world_size]:
            weights = found["side"][task]["network"]
            assert all(
                torch.allclose(weights[name], value, atol=1e-5) for name, value in expected.items()
            ), task


def both(modes: list[DistillationSettings]) -> list[list[dict[str, Any]]]:
    changes = {"dense_clip_norm": 0.05, "skip_non_finite_batches": True, "dense_optimizer": "adam"}
    return [
        [train(mode, {**changes, "overlap": overlap}, BAD) for overlap in (False, True)]
        for mode in modes
    ]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same(first[name], second[name]) for name in first
        )
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    return first == second or (
        isinstance(first, float) and math.isnan(first) and math.isnan(second)
    )


def test_overlapped_steps_and_a_skipped_batch_give_the_bits_of_the_plain_loop() -> None:
    modes = [with_mode("auxiliary_adapter", update) for update in ("before", "after")] + [
        with_mode("co_distillation")
    ]
    for found in run_on_ranks(both, (modes,), 2, 1):
        for plain, overlapped in found:
            assert plain["counts"] == (len(SIZES) - 1, 1)
            assert same(plain["state"], overlapped["state"])
            assert same(plain["side"], overlapped["side"])
            assert all(
                same(a, b) for a, b in zip(plain["losses"], overlapped["losses"], strict=True)
            )


def skip_one(settings: DistillationSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The adapter before and after a batch that all ranks leave out."""
    engine, loss = student(settings, {"skip_non_finite_batches": True})
    one, *_, bad, _ = batches(BAD)
    engine.train_step(one, loss)
    before = side(engine)
    assert math.isnan(engine.train_step(bad, loss))
    return before, side(engine)


def test_a_batch_left_out_leaves_no_trace_in_the_adapter() -> None:
    cases = {update: (2, (with_mode("auxiliary_adapter", update),)) for update in UPDATES}
    for update, ranks in run_cases(skip_one, cases).items():
        for before, after in ranks:
            assert same(before, after), update


def save_and_go_on(
    settings: DistillationSettings, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    changes = {"dense_optimizer": "adam"}
    engine, loss = student(settings, changes)
    given = list(batches())
    for batch in given[:3]:
        engine.train_step(batch, loss)
    engine.save(folder / "checkpoint")
    other, other_loss = student(settings, changes)
    other.load(folder / "checkpoint")
    for batch in given[3:]:
        engine.train_step(batch, loss)
        other.train_step(batch, other_loss)
    ends = [{"state": one.gather_state(), "side": side(one)} for one in (engine, other)]
    return ends[0], ends[1]


def test_a_checkpoint_holds_the_adapter_and_the_peer(tmp_path: Path) -> None:
    modes = ("auxiliary_adapter", "co_distillation")
    for mode, ranks in run_cases(
        save_and_go_on, {m: (2, (with_mode(m), tmp_path / m)) for m in modes}
    ).items():
        for first, second in ranks:
            assert same(first, second), mode


def diagnose(settings: DistillationSettings) -> dict[str, Any]:
    engine, loss = student(settings, {})
    diagnostics = DistillationDiagnostics(loss)
    batch = next(batches())
    before = engine.gather_state()
    counts = {name: float(count) for name, count in diagnostics.counts(batch).items()}
    found = diagnostics.summary(engine, counts, batch)
    return {"found": found, "unchanged": same(before, engine.gather_state()), "counts": counts}


def reference_products(settings: DistillationSettings) -> tuple[float, float]:
    """Ratio and cosine by two plain backward passes over the whole batch."""
    ranker = build_ranker(SCHEMA_OF_TWO, MODEL, None, SEED)
    model = DistilledRanker(ranker, settings, SEED, 0.3, further_base_rates=[0.4])
    batch, loss = scored(share(SIZES[0], 0, 0, 1)), DistillationLoss(settings)
    embeddings = ranker.embed(batch.sparse).detach().requires_grad_()
    backbone = [
        p
        for name, p in ranker.named_parameters()
        if not name.startswith(("output", "further_output", "embeddings"))
    ]
    outputs = model.heads(ranker.represent_embedded(batch.dense, embeddings))
    serving, distillation = (
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    term.mean(), [*backbone, embeddings], retain_graph=True
                )
            ]
        )
        for term in (loss.serving(outputs, batch), loss.distillation(outputs, batch))
    )
    cosine = torch.nn.functional.cosine_similarity(serving, distillation, dim=0)
    return (distillation.norm() / serving.norm()).item(), cosine.item()


def test_diagnostics_of_several_ranks_are_those_of_plain_backward_passes_and_update_nothing() -> (
    None
):
    settings = with_mode("auxiliary")
    ratio, cosine = reference_products(settings)
    for world_size in (1, 2):
        for result in run_on_ranks(diagnose, (settings,), world_size, 1):
            assert result["unchanged"]
            assert result["found"]["gradient_ratio"] == pytest.approx(ratio, rel=1e-4)
            assert result["found"]["gradient_cosine"] == pytest.approx(cosine, rel=1e-4)


def test_missing_and_clipped_scores_are_counted() -> None:
    settings = with_mode("auxiliary").model_copy(update={"label_scale": 4.0})
    found = run_on_ranks(diagnose, (settings,), 1, 1)[0]
    batch = scored(share(SIZES[0], 0, 0, 1))
    known = batch.score[~torch.isnan(batch.score)]
    assert 0 < found["found"]["missing_scores"] == 1 - len(known) / SIZES[0]
    assert (
        0 < found["found"]["clip_rate"] == (torch.sigmoid(known) > 0.25).sum().item() / len(known)
    )
