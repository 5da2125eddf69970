"""Dense optimisers by name, learning rates over the steps, clipping, and their refusals."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.config import InputError, load_settings
from recsys.models.initial_tables import initial_rows
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.non_finite import SOURCES, NonFiniteLossError
from recsys.training.optimizers import first_state, rate_factor
from recsys.training.settings import DENSE_OPTIMIZERS, ScheduleSettings, TrainSettings
from tests.support.one_table import DIMENSION, ROWS, SEED, Small, make_batch, train_settings

STEPS = 6
SCHEDULE = {"warmup_steps": 2, "decay": "cosine", "decay_steps": 3, "final_fraction": 0.1}


def train(settings: TrainSettings) -> dict[str, Tensor]:
    engine = Engine(Small(), settings, SEED)
    for step in range(STEPS):
        engine.train_step(make_batch(step), engine.serving_loss)
    return engine.gather_state()


def reference(
    settings: TrainSettings, factors: list[float], clip: float | None = None
) -> dict[str, Tensor]:
    """Plain PyTorch: SGD on the table, the named optimiser on the layer."""
    model = Small("cpu")
    table = next(model.embeddings.parameters())
    with torch.no_grad():
        table.copy_(initial_rows(SEED, "table_a", ROWS, DIMENSION, 0, ROWS))
    name, options = settings.dense_optimizer, dict(settings.dense_optimizer_options)
    dense = getattr(torch.optim, DENSE_OPTIMIZERS[name])(
        model.layer.parameters(), lr=1.0, **options
    )
    tables = torch.optim.SGD([table], lr=1.0)
    for step, factor in zip(range(STEPS), factors, strict=True):
        for optimizer, rate in (
            (dense, settings.dense_learning_rate),
            (tables, settings.rate_of("table_a")),
        ):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        batch = make_batch(step)
        binary_cross_entropy_with_logits(
            model(batch.dense, batch.sparse)["serving"], batch.label
        ).backward()
        if clip is not None:
            norm = torch.stack(
                [p.grad.norm() for p in model.layer.parameters() if p.grad is not None]
            ).norm()
            for parameter in model.layer.parameters():
                assert parameter.grad is not None
                parameter.grad *= min(1.0, clip / (norm.item() + 1e-6))
        dense.step()
        tables.step()
    return model.state_dict()


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6, msg=name)


def test_the_names_are_those_of_torch() -> None:
    classes = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    assert classes - {"LBFGS", "Muon", "Optimizer", "SparseAdam"} == set(DENSE_OPTIMIZERS.values())


@pytest.mark.parametrize("name", sorted(DENSE_OPTIMIZERS))
def test_dense_optimizer_by_name(name: str) -> None:
    settings = train_settings(dense_optimizer=name)
    assert_same(run_on_ranks(train, (settings,), 1, 1)[0], reference(settings, [1.0] * STEPS))


def test_options_reach_the_optimizer() -> None:
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    settings = train_settings(dense_optimizer="SGD", dense_optimizer_options=options)
    expected = reference(settings, [1.0] * STEPS)
    assert_same(run_on_ranks(train, (settings,), 1, 1)[0], expected)
    assert not torch.equal(
        expected["layer.weight"],
        reference(train_settings(dense_optimizer="sgd"), [1.0] * STEPS)["layer.weight"],
    )


@pytest.mark.parametrize("own", [{}, {"table_a": 0.3}])
@pytest.mark.parametrize("sharding", ["table_wise", "data_parallel"])
def test_warm_up_and_decay_reach_dense_and_tables(sharding: str, own: dict[str, float]) -> None:
    settings = train_settings(
        dense_optimizer="adam", schedule=SCHEDULE, sharding=sharding, table_rate_factors=own
    )
    factors = [0.5, 1.0, 1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25, 0.1]
    assert_same(run_on_ranks(train, (settings,), 1, 1)[0], reference(settings, factors))


def test_shapes_of_the_decays() -> None:
    def factors(decay: str, **more: Any) -> list[float]:
        steps = {} if decay == "constant" else {"decay_steps": 4}
        schedule = ScheduleSettings.model_validate({"decay": decay, **steps, **more})
        return [rate_factor(step, schedule) for step in range(6)]

    assert factors("constant", warmup_steps=3) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert factors("linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])
    assert factors("polynomial", power=2) == pytest.approx([1, 0.5625, 0.25, 0.0625, 0, 0])
    assert factors("polynomial", power=1, final_fraction=0.5) == pytest.approx(
        [1, 0.875, 0.75, 0.625, 0.5, 0.5]
    )


def test_clipping_is_by_the_norm_of_the_whole_dense_gradient() -> None:
    settings = train_settings(dense_optimizer="sgd", dense_clip_norm=0.05)
    state = run_on_ranks(train, (settings,), 1, 1)[0]
    assert_same(state, reference(settings, [1.0] * STEPS, clip=0.05))
    assert not torch.equal(
        state["layer.weight"], reference(settings, [1.0] * STEPS)["layer.weight"]
    )


def save_and_resume(settings: TrainSettings, folder: Path) -> list[dict[str, Tensor]]:
    """Save before the first step and after the third; train three engines to the same step: all
    weights."""
    first = Engine(Small(), settings, SEED)
    first.save(folder / "0")
    for step in range(3):
        first.train_step(make_batch(step), first.serving_loss)
    first.save(folder / "3")
    engines = [first]
    for name in ("0", "3"):
        engine = Engine(Small(), settings, SEED + 1)
        engine.load(folder / name)
        assert engine.steps == int(name)
        engines.append(engine)
    for engine in engines:
        for step in range(engine.steps, STEPS):
            engine.train_step(make_batch(step), engine.serving_loss)
    return [engine.gather_state() for engine in engines]


@pytest.mark.parametrize("name", sorted(DENSE_OPTIMIZERS))
def test_every_optimizer_and_schedule_resumes_exactly(name: str, tmp_path: Path) -> None:
    settings = train_settings(dense_optimizer=name, schedule=SCHEDULE)
    first, *others = run_on_ranks(save_and_resume, (settings, tmp_path), 1, 1)[0]
    for other in others:
        assert all(torch.equal(value, first[key]) for key, value in other.items())


def test_first_state_has_the_shapes_of_a_later_one() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    state = first_state(parameter, train_settings(dense_optimizer="adam"))
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "step": (),
        "exp_avg": (2, 3),
        "exp_avg_sq": (2, 3),
    }
    assert torch.equal(parameter, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dense_optimizer: adm", "key 'dense_optimizer': .*did you mean 'adam'"),
        ("dense_optimizer: lbfgs", "key 'dense_optimizer': .*there are: adadelta"),
        (
            "dense_optimizer: sgd\ndense_optimizer_options: {momentun: 0.9}",
            "sgd takes no 'momentun'; did you mean 'momentum'",
        ),
        (
            "table_optimizer: lamb",
            "key 'table_optimizer': .*'sgd', 'rowwise_adagrad', 'adagrad' or 'adam'",
        ),
        ("schedule: {decay: linear}", r"key 'schedule\.decay': .*needs decay_steps"),
        ("schedule: {warmup: 3}", r"unknown key 'schedule\.warmup'; did you mean 'warmup_steps'"),
        ("sharding: grid", "key 'sharding'"),
        ("table_sharding: {table_a: diagonal}", "key 'table_sharding.table_a"),
        (
            "world_size: 4\nranks_per_host: 3",
            "key 'ranks_per_host': .*4 is not a multiple",
        ),
    ],
)
def test_settings_name_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_settings(path, TrainSettings)
    assert "\n" not in str(caught.value)


def test_refused_values_of_options() -> None:
    settings = train_settings(dense_optimizer="sgd", dense_optimizer_options={"momentum": -1.0})
    with pytest.raises(
        InputError, match=r"^TrainSettings: key 'dense_optimizer_options': sgd refuses .*momentum"
    ):
        run_on_ranks(train, (settings,), 1, 1)


def break_one(field: str) -> None:
    """A step on a batch whose ``field`` holds an infinity."""
    engine = Engine(Small(), train_settings(), SEED)
    batch = make_batch(0)
    if field == "loss":
        engine.train_step(batch, lambda outputs, _: outputs["serving"].detach() * math.inf)
    getattr(batch, field).view(-1)[0] = math.inf
    engine.train_step(batch, engine.serving_loss)


@pytest.mark.parametrize(
    ("field", "sources"),
    [("dense", (SOURCES[0], SOURCES[2])), ("label", (SOURCES[1],)), ("loss", (SOURCES[3],))],
)
def test_a_non_finite_loss_names_what_held_it(field: str, sources: tuple[str, ...]) -> None:
    with pytest.raises(NonFiniteLossError, match=r"^step 1: the loss is not finite") as caught:
        run_on_ranks(break_one, (field,), 1, 1)
    assert caught.value.sources == sources
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.step, again.sources, str(again)) == (1, sources, str(caught.value))
