"""Each task of a student learns its own label and its own score, and serves what the plain student
serves."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.config import InputError
from recsys.data.loader import Batch
from recsys.distill.adapter import ScoreNetwork, StudentAdapter
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.heads import PEER_TABLE_PREFIX, DistilledRanker
from recsys.distill.losses import DistillationLoss
from recsys.distill.student_checks import check_students
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.models.factory import build_ranker
from recsys.training.settings import TrainSettings
from tests.support.comparing import same
from tests.support.distilled import MODEL, ROWS, SCHEMA_OF_TWO, batch_of_two, weights_of

WEIGHT = 3.0
MISSING = torch.arange(ROWS) % 3 == 0
MODES: dict[str, dict[str, Any]] = {
    "shared": {"mode": "shared"},
    "affine": {"mode": "affine"},
    "auxiliary": {"mode": "auxiliary"},
    "extra": {
        "mode": "auxiliary_adapter",
        "adapter": {"loss_weight": 0.7, "label_scale": 1.5, "learning_rate": 0.1},
    },
    "replace": {"mode": "auxiliary_adapter", "adapter": {"kind": "replace", "learning_rate": 0.1}},
    "peer": {"mode": "co_distillation", "peer_model": MODEL},
}


def distilled(**changes: Any) -> tuple[DistilledRanker, DistillationLoss]:
    """With an adapter that has learnt from a few batches, where the mode has one."""
    settings = DistillationSettings.model_validate({"head_layers": [5], **changes})
    ranker = build_ranker(SCHEMA_OF_TWO, MODEL, None, seed=3)
    peer = adapter = None
    if settings.has_peer:
        peer = build_ranker(SCHEMA_OF_TWO, MODEL, None, 4, "cpu", PEER_TABLE_PREFIX)
    if settings.way.adapts:
        adapter = adapter_of(settings, further_tasks=["conversion"])
        for step in range(1, 6):
            adapter.begin(batch_of_two(MISSING), step)
            adapter.end(updated=True)
    model = DistilledRanker(ranker, settings, 3, 0.1, peer, further_base_rates=[0.02])
    return model, DistillationLoss(settings, adapter, {"conversion": WEIGHT})


def adapter_of(
    settings: DistillationSettings, further_tasks: list[str], **train: Any
) -> StudentAdapter:
    return StudentAdapter(settings, TrainSettings.model_validate(train), 1, 1, further_tasks)


def terms(
    mode: str,
    names: dict[str, str],
    outputs: dict[str, Tensor],
    loss: DistillationLoss,
    score: Tensor,
    label: Tensor,
) -> list[tuple[float, Tensor, Tensor]]:
    """Weight, logit and target of all terms of one task on one example, in plain words."""
    found, target = [], torch.sigmoid(score)
    adapted = target
    if mode in ("extra", "replace"):
        assert isinstance(loss._adapter, StudentAdapter)
        adapted = torch.sigmoid(loss._adapter.networks[names["task"]](score[None])[0].detach())
    if not label.isnan():
        found.append((1.0, outputs[names["serving"]], label))
    if mode == "peer":
        found.append(
            (2.0, outputs[names["distillation"]], torch.sigmoid(outputs[names["peer"]].detach()))
        )
        if not label.isnan():
            found.append((1.0, outputs[names["peer"]], label))
    elif not score.isnan():
        found.append(
            (2.0, outputs[names["distillation"]], adapted if mode == "replace" else target)
        )
        if mode == "extra":
            found.append((0.7, outputs[names["adapted"]], (1.5 * adapted).clamp(max=1.0)))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_loss_is_the_sum_over_tasks_of_all_terms(mode: str) -> None:
    model, loss = distilled(**MODES[mode], loss_weight=2.0)
    one = batch_of_two(MISSING)
    heads = ("distillation", "adapted", "peer")
    tasks = [
        (
            1.0,
            {head: head for head in ("serving", *heads)} | {"task": "serving"},
            one.label,
            one.score,
        ),
        (
            WEIGHT,
            {head: f"{head}_conversion" for head in heads}
            | {"serving": "conversion", "task": "conversion"},
            one.further_labels["conversion"],
            one.further_scores["conversion"],
        ),
    ]
    one.further_scores["conversion"][::2] = torch.nan
    outputs = model(one.dense, one.sparse)
    expected = torch.zeros(ROWS)
    for weight, names, label, score in tasks:
        for row in range(ROWS):
            of_row = {name: logit[row] for name, logit in outputs.items()}
            for own, logit, target in terms(mode, names, of_row, loss, score[row], label[row]):
                expected[row] += weight * own * binary_cross_entropy_with_logits(logit, target)
    torch.testing.assert_close(loss(outputs, one), expected)


@pytest.mark.parametrize("mode", ["auxiliary", "extra", "replace"])
def test_a_tasks_score_never_reaches_its_serving_head_or_the_other_tasks_heads(mode: str) -> None:
    model, loss = distilled(**MODES[mode], loss_weight=5.0, gradient_scale=3.0)
    networks = (
        list(loss._adapter.networks.values()) if isinstance(loss._adapter, StudentAdapter) else []
    )
    for network in networks:
        network.zero_grad()
    one = batch_of_two(MISSING)
    one.score[:] = torch.nan
    one.further_scores["conversion"].requires_grad_()
    loss.distillation(model(one.dense, one.sparse), one).sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    others = ("ranker.output", "ranker.further_output", "distillation_head", "adapter_head")
    assert not any(name.startswith(others) for name in touched)
    assert any(name.startswith("further_heads.0") for name in touched)
    assert any(name.startswith("further_adapter_heads.0") for name in touched) == (mode == "extra")
    assert any(name.startswith("ranker.over_arch") for name in touched)
    assert one.further_scores["conversion"].grad is None
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())


def batches_of_two() -> list[Batch]:
    """Labels and scores that are missing on rows of their own, for each task."""
    found = []
    for step in range(6):
        one = copy.deepcopy(batch_of_two(MISSING.roll(step)))
        one.score[step::4] = torch.nan
        one.further_scores["conversion"][step + 1 :: 3] = torch.nan
        one.further_labels["conversion"] = one.further_labels["conversion"].roll(step)
        found.append(one)
    return found


def reference_adapter(settings: DistillationSettings, task: str, clip: float) -> list[Tensor]:
    """The weights after plain steps on the rows, picked out by hand, that have a label and a
    score."""
    network = ScoreNetwork(settings.adapter.hidden_layers, 1)
    adam = torch.optim.Adam(network.parameters(), lr=settings.adapter.learning_rate)
    for one in batches_of_two():
        label = one.label if task == "serving" else one.further_labels[task]
        score = one.score if task == "serving" else one.further_scores[task]
        rows = [row for row in range(ROWS) if not label[row].isnan() and not score[row].isnan()]
        adam.zero_grad()
        loss = (
            binary_cross_entropy_with_logits(network(score[rows]), label[rows], reduction="sum")
            / ROWS
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        adam.step()
    return list(network.state_dict().values())


@pytest.mark.parametrize("update", ["before", "after"])
def test_each_tasks_adapter_learns_its_own_labels_alone(update: str) -> None:
    """That of a plain loop and, to the bit, that of a student of this task alone."""
    values = {"mode": "auxiliary_adapter", "adapter": {"update": update, "learning_rate": 0.05}}
    settings, clip = DistillationSettings.model_validate(values), 0.02
    both = adapter_of(settings, ["conversion"], dense_clip_norm=clip)
    alone = {
        task: adapter_of(settings, [], dense_clip_norm=clip) for task in ("serving", "conversion")
    }
    for step, one in enumerate(batches_of_two(), start=1):
        of_one = {
            "serving": replace(one, further_labels={}, further_scores={}),
            "conversion": one.of_task("conversion"),
        }
        for adapter, given in (
            (both, one),
            *((alone[task], given) for task, given in of_one.items()),
        ):
            adapter.begin(given, step)
            adapter.end(updated=step != 3)  # one batch is left out
            if step == 3:
                adapter.begin(given, step)
                adapter.end(updated=True)
    for task, single in alone.items():
        assert same(weights_of(both, task), weights_of(single, "serving"))
        for found, expected in zip(
            weights_of(both, task), reference_adapter(settings, task, clip), strict=False
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not same(weights_of(both, "serving"), weights_of(both, "conversion"))


def test_a_batch_that_is_left_out_is_undone_for_every_task() -> None:
    adapter = adapter_of(DistillationSettings(mode="auxiliary_adapter"), ["conversion"])
    before = [*weights_of(adapter, "serving"), *weights_of(adapter, "conversion")]
    adapter.begin(batch_of_two(MISSING), 1)
    assert not same(before, [*weights_of(adapter, "serving"), *weights_of(adapter, "conversion")])
    adapter.end(updated=False)
    assert same(before, [*weights_of(adapter, "serving"), *weights_of(adapter, "conversion")])


def test_a_peer_learns_the_labels_of_all_tasks_alone() -> None:
    model, loss = distilled(**MODES["peer"], loss_weight=2.0)
    one = batch_of_two(MISSING)
    assert model.peer is not None
    loss(model(one.dense, one.sparse), one).sum().backward()
    learnt = {
        name: p.grad.clone() for name, p in model.peer.named_parameters() if p.grad is not None
    }
    alone = build_ranker(SCHEMA_OF_TWO, MODEL, None, 4, "cpu", PEER_TABLE_PREFIX)
    outputs = alone(one.dense, one.sparse)
    for weight, logit, label in (
        (1.0, outputs["serving"], one.label),
        (WEIGHT, outputs["conversion"], one.further_labels["conversion"]),
    ):
        for row in range(ROWS):
            if not label[row].isnan():
                (weight * binary_cross_entropy_with_logits(logit[row], label[row])).backward(
                    retain_graph=True
                )
    expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    assert learnt.keys() == expected.keys()
    for name, gradient in learnt.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_served_part_is_the_plain_student_of_the_same_tasks(mode: str) -> None:
    model, _ = distilled(**MODES[mode])
    plain = build_ranker(SCHEMA_OF_TWO, MODEL, None, seed=3)
    served = {
        k.removeprefix("ranker."): v
        for k, v in model.state_dict().items()
        if k.startswith("ranker.")
    }
    assert list(served) == list(plain.state_dict())
    assert all(torch.equal(served[name], value) for name, value in plain.state_dict().items())
    one = batch_of_two(MISSING)
    outputs, expected = model(one.dense, one.sparse), plain(one.dense, one.sparse)
    assert all(torch.equal(outputs[task], expected[task]) for task in ("serving", "conversion"))


def test_heads_of_tasks_start_apart_at_their_rates() -> None:
    model, _ = distilled(**MODES["extra"], label_scale=2.0)
    heads = [
        model.distillation_head,
        *model.further_heads,
        model.adapter_head,
        *model.further_adapter_heads,
    ]
    biases = [head[-1].bias for head in heads]  # type: ignore[index]
    assert [torch.sigmoid(bias).item() for bias in biases] == pytest.approx([0.2, 0.04, 0.15, 0.03])
    assert len({head[0].weight.sum().item() for head in heads}) == len(heads)  # type: ignore[index]


def settings_of(student: dict[str, Any]) -> StudentsSettings:
    return StudentsSettings(
        model=MODEL,
        seeds=[1],
        students=[StudentSettings.model_validate({"name": "one", "domain": "all", **student})],
        distillation=DistillationSettings(),
    )


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"tasks": ["cart"]}, "key 'tasks': 'one': task 'cart': the data have click, conversion"),
        ({"tasks": []}, "key 'tasks': 'one': tasks: give at least one"),
        (
            {"task_weights": {"conversion": 2.0}},
            "StudentSettings: key 'task_weights.conversion'.*are: none",
        ),
        (
            {"tasks": ["conversion", "click"], "task_weights": {"conversion": 2.0}},
            "main one, conversion",
        ),
        ({"tasks": ["click", "conversion"], "budget": {"parameters": 1}}, "budget.parameters"),
    ],
)
def test_wrong_tasks_are_one_clear_error(student: dict[str, Any], message: str) -> None:
    schema = replace(SCHEMA_OF_TWO, domains=["all"])
    with pytest.raises(InputError, match=message):
        check_students(schema, settings_of(student))
    check_students(
        schema, settings_of({"tasks": ["click", "conversion"], "task_weights": {"conversion": 2.0}})
    )
