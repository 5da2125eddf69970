"""Each task of a student learns its own label and its own score, and serves what the plain student serves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.config import InputError
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.heads import DistilledRanker
from recsys.distill.losses import DistillationLoss
from recsys.distill.settings import StudentSettings, StudentsSettings
from recsys.distill.students import check_students
from recsys.models.factory import build_ranker
from tests.recsys.distill.test_heads import MODEL, ROWS
from tests.recsys.training.test_label_loss import SCHEMA_OF_TWO, batch_of_two

WEIGHT = 3.0
MISSING = torch.arange(ROWS) % 3 == 0
MODES = ("shared", "affine", "auxiliary")


def distilled(**changes: Any) -> tuple[DistilledRanker, DistillationLoss]:
    settings = DistillationSettings(head_layers=[5], **changes)
    ranker = build_ranker(SCHEMA_OF_TWO, MODEL, None, seed=3)
    model = DistilledRanker(ranker, settings, 3, 0.1, further_base_rates=[0.02])
    return model, DistillationLoss(settings, task_weights={"conversion": WEIGHT})


@pytest.mark.parametrize("mode", MODES)
def test_loss_is_the_sum_over_tasks_of_both_terms(mode: str) -> None:
    model, loss = distilled(mode=mode, loss_weight=2.0)
    one = batch_of_two(MISSING)
    one.further_scores["conversion"][::2] = torch.nan
    outputs = model(one.dense, one.sparse)
    expected = torch.zeros(ROWS)
    tasks = [
        (1.0, "serving", "distillation", one.label, one.score),
        (
            WEIGHT,
            "conversion",
            "distillation_conversion",
            one.further_labels["conversion"],
            one.further_scores["conversion"],
        ),
    ]
    for weight, serving, head, label, score in tasks:
        for row in range(ROWS):
            if not label[row].isnan():
                expected[row] += weight * binary_cross_entropy_with_logits(outputs[serving][row], label[row])
            if not score[row].isnan():
                target = torch.sigmoid(score[row])
                expected[row] += weight * 2.0 * binary_cross_entropy_with_logits(outputs[head][row], target)
    torch.testing.assert_close(loss(outputs, one), expected)


def test_a_tasks_score_never_reaches_its_serving_head_or_the_other_tasks_heads() -> None:
    model, loss = distilled(mode="auxiliary", loss_weight=5.0, gradient_scale=3.0)
    one = batch_of_two(MISSING)
    one.score[:] = torch.nan
    loss.distillation(model(one.dense, one.sparse), one).sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(name.startswith(("ranker.output", "ranker.further_output", "distillation_head")) for name in touched)
    assert any(name.startswith("further_heads.0") for name in touched)
    assert any(name.startswith("ranker.over_arch") for name in touched)


@pytest.mark.parametrize("mode", MODES)
def test_served_part_is_the_plain_student_of_the_same_tasks(mode: str) -> None:
    model, _ = distilled(mode=mode)
    plain = build_ranker(SCHEMA_OF_TWO, MODEL, None, seed=3)
    served = {k.removeprefix("ranker."): v for k, v in model.state_dict().items() if k.startswith("ranker.")}
    assert list(served) == list(plain.state_dict())
    assert all(torch.equal(served[name], value) for name, value in plain.state_dict().items())
    one = batch_of_two(MISSING)
    outputs, expected = model(one.dense, one.sparse), plain(one.dense, one.sparse)
    assert all(torch.equal(outputs[task], expected[task]) for task in ("serving", "conversion"))


def test_distillation_heads_of_tasks_start_apart_at_their_rates() -> None:
    model, _ = distilled(mode="auxiliary", label_scale=2.0)
    biases = [head[-1].bias for head in (model.distillation_head, model.further_heads[0])]  # type: ignore[index]
    assert [torch.sigmoid(bias).item() for bias in biases] == pytest.approx([0.2, 0.04])
    first, second = (head[0].weight for head in (model.distillation_head, model.further_heads[0]))  # type: ignore[index]
    assert not torch.equal(first, second)


def settings_of(student: dict[str, Any], mode: str = "auxiliary") -> StudentsSettings:
    return StudentsSettings(
        model=MODEL,
        seeds=[1],
        students=[StudentSettings.model_validate({"name": "one", "domain": "all", **student})],
        distillation=DistillationSettings.model_validate({"mode": mode, "peer_model": MODEL}),
    )


@pytest.mark.parametrize("mode", ["auxiliary_adapter", "co_distillation"])
def test_modes_of_one_task_are_refused_for_several(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"student 'one': arm 'distilled': mode {mode} is for one task"):
        settings_of({"tasks": ["click", "conversion"]}, mode)
    check_students(SCHEMA_OF_TWO, settings_of({"tasks": ["conversion"]}, mode))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"tasks": ["cart"]}, "students: 'one': task 'cart': the data have click, conversion"),
        ({"tasks": []}, "students: 'one': tasks: give at least one"),
        ({"task_weights": {"conversion": 2.0}}, "students: 'one': key 'task_weights.conversion'.*are: none"),
        ({"tasks": ["conversion", "click"], "task_weights": {"conversion": 2.0}}, "main one, conversion"),
        ({"tasks": ["click", "conversion"], "budget": {"parameters": 1}}, "budget.parameters"),
    ],
)
def test_wrong_tasks_are_one_clear_error(student: dict[str, Any], message: str) -> None:
    schema = replace(SCHEMA_OF_TWO, domains=["all"])
    with pytest.raises(InputError, match=message):
        check_students(schema, settings_of(student))
    check_students(schema, settings_of({"tasks": ["click", "conversion"], "task_weights": {"conversion": 2.0}}))
