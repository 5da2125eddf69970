"""The tower transform on 4, 6 and 8 gloo ranks, as several hosts, against the flat engine and
against one process."""

from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, nn

from recsys.config import InputError
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.sharding.settings import CommunicationSettings
from recsys.towers.engine import tower_engine
from recsys.towers.tower_groups import place_towers
from recsys.towers.tower_hosts import tower_ranks
from recsys.towers.traffic import AllToAllRecorder
from recsys.training import engine as engine_module
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings
from tests.support.engines import everything
from tests.support.launches import Case, run_cases
from tests.support.towers import (
    DIMENSION,
    EXACT_SIZES,
    FEATURES,
    KINDS,
    SCHEMA,
    SEED,
    SIZES,
    TOLERANCE,
    Products,
    few_bits,
    model_settings,
    random_partition,
    share,
    signed,
    train_settings,
)

pytestmark = pytest.mark.slow

# By number of ranks: hosts T, ranks per host L, hosts per tower K.
LAYOUTS = {
    4: [(2, 2, 1), (4, 1, 1), (1, 4, 1), (4, 1, 2)],
    6: [(3, 2, 1)],
    8: [(2, 4, 1), (4, 2, 1), (4, 2, 2)],
}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {
        "table_optimizer": "sgd",
        "sharding": "column_wise",
        "dense_optimizer_options": {"momentum": 0.5},
    },
    "adagrad": {
        "table_optimizer": "adagrad",
        "table_sharding": {"table_user": "column_wise", "table_tags": "row_wise"},
    },
    "factors": {
        "table_optimizer": "adagrad",
        "sharding": "row_wise",
        "table_rate_factors": {"table_user": 0.3, "table_tags": 3.0},
    },
    "rowwise_adagrad": {"table_optimizer": "rowwise_adagrad", "sharding": "table_row_wise"},
    "clipped": {"table_optimizer": "sgd", "dense_clip_norm": 0.02},
}


class Halves(nn.Linear):
    """A tower module whose weights are a half each: forward [B, F, N] -> [B, F * N / 4]."""

    def __init__(self) -> None:
        super().__init__(DIMENSION, DIMENSION // 4, bias=False)
        nn.init.constant_(self.weight, 0.5)


def exact_engine(settings: TrainSettings, partition: Partition, modules: str) -> Engine:
    """An engine whose sums are exact."""
    positions = [[list(FEATURES).index(name) for name in tower] for tower in partition.towers]
    # Own weights are learnt from sums in the towers' order: exact, but not of few bits
    shape = model_settings("dlrm").model_copy(update={"first_order": False})
    model = Products(SCHEMA, shape, positions, "meta")
    model.interaction.towers = nn.ModuleList(
        Halves() if modules == "halves" else nn.Identity() for _ in positions
    )
    settings = settings.model_copy(update={"table_learning_rate": 1.0, "dense_learning_rate": 0.5})
    with mock.patch.object(engine_module, "initial_rows", few_bits):
        return tower_engine(model, settings, SEED, partition)


def first_outputs(engine: Engine) -> Tensor:
    return engine.predict(share(SIZES[0], 0, engine.rank, engine.world_size))


def train_exactly(
    settings: TrainSettings, partition: Partition, modules: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Train with exact sums: this rank's first outputs, and the weights. With tower modules one
    step only."""
    engine = exact_engine(settings, partition, modules)
    outputs = first_outputs(engine)
    for step, rows in enumerate(EXACT_SIZES if modules == "pass" else EXACT_SIZES[:1]):
        engine.train_step(share(rows, step, engine.rank, engine.world_size), signed)
    state = engine.gather_state()
    learned = ("embeddings.", "interaction.towers.")
    return outputs, {name: value for name, value in state.items() if name.startswith(learned)}


def exact_runs() -> list[tuple[str, str, tuple[int, int, int], Partition]]:
    """(kind, tower modules, layout, partition) of every run, all numbers of ranks."""
    runs = []
    for layout in (layout for layouts in LAYOUTS.values() for layout in layouts):
        for seed, kind in enumerate(KINDS):
            runs.append((kind, "pass", layout, random_partition(layout, seed)))
        runs.append(("table_wise", "halves", layout, random_partition(layout, len(KINDS))))
    return runs


def exact_case() -> dict[int, Any]:
    """On every rank: whether outputs are those without the transform, and weights with it, by index
    in exact_runs."""
    world_size, results = distributed.get_world_size(), {}
    flat: dict[str, Tensor] = {}
    for index, (kind, modules, layout, partition) in enumerate(exact_runs()):
        if layout[0] * layout[1] == world_size:
            settings = train_settings(world_size, layout, sharding=kind)
            outputs, state = train_exactly(settings, partition, modules)
            summed = summed_alike(modules, partition)
            if summed not in flat:
                flat[summed] = first_outputs(
                    exact_engine(train_settings(world_size, None), partition, modules)
                )
            results[index] = torch.equal(outputs, flat[summed]), state
    return results


def summed_alike(modules: str, partition: Partition) -> str:
    """The same text for partitions whose towers, passed through, are one and the same sum."""
    return modules if modules == "pass" else f"{modules} {partition.towers}"


def plain_case() -> dict[str, dict[str, Any]]:
    """On every rank: what a tower a feature, passed through, gives on every layout, and the model
    without towers."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    partition = Partition("manual", [[name] for name in FEATURES], list(FEATURES))
    engines: dict[str, Engine] = {}
    for architecture in ("dlrm", "dcn")[: 1 if world_size == 8 else 2]:  # a rank's start takes long
        # Own weights are added up tower by tower, so their sums have other roundoff
        bare = model_settings(architecture).model_copy(update={"first_order": False})
        flat = bare.model_copy(update={"towers": False})
        passing = bare.model_copy(update={"tower_dimension": DIMENSION})
        settings = train_settings(world_size, None)
        engines[architecture] = Engine(
            build_ranker(SCHEMA, flat, None, SEED, "meta"), settings, SEED
        )
        for layout in LAYOUTS[world_size]:
            for kind in KINDS:
                ranker = build_ranker(SCHEMA, passing, partition, SEED, "meta")
                settings = train_settings(world_size, layout, sharding=kind)
                engines[f"{architecture} {layout} {kind}"] = tower_engine(
                    ranker, settings, SEED, partition
                )
    results: dict[str, dict[str, Any]] = {}
    for name, engine in engines.items():
        outputs = engine.predict(share(32, 9, rank, world_size))
        for step, rows in enumerate(SIZES):
            engine.train_step(share(rows, step, rank, world_size), engine.serving_loss)
        results[name] = {"outputs": outputs, "state": engine.gather_state()}
    return results


def both_cases() -> dict[str, Any]:
    return {"plain": plain_case(), "exact": exact_case()}


@cache
def runs_of(world_size: int) -> list[dict[str, Any]]:
    """Results of plain_case and exact_case by rank."""
    return run_on_ranks(both_cases, (), world_size, 1)


@pytest.mark.parametrize("world_size", LAYOUTS)
def test_a_tower_per_feature_passed_through_is_the_model_without_towers(world_size: int) -> None:
    for rank in (ran["plain"] for ran in runs_of(world_size)):
        for name, result in rank.items():
            flat = rank[name.split()[0]]
            same = torch.allclose if name.endswith("row_wise") else torch.equal
            assert same(result["outputs"], flat["outputs"]), name
            assert list(result["state"]) == list(flat["state"])
            for parameter, value in flat["state"].items():
                torch.testing.assert_close(
                    result["state"][parameter],
                    value,
                    rtol=0,
                    atol=TOLERANCE,
                    msg=f"{name} {parameter}",
                )


@pytest.mark.parametrize("world_size", LAYOUTS)
def test_exact_sums_give_the_bits_of_one_process_for_any_placement(world_size: int) -> None:
    results = [ran["exact"] for ran in runs_of(world_size)]
    runs = exact_runs()
    references: dict[str, dict[str, Tensor]] = {}
    assert len(results[0]) == len(LAYOUTS[world_size]) * (len(KINDS) + 1)
    for index, (_, state) in results[0].items():
        _, modules, layout, partition = runs[index]
        summed = summed_alike(modules, partition)
        if summed not in references:
            arguments = (train_settings(1, None), partition, modules)
            references[summed] = run_on_ranks(train_exactly, arguments, 1, 1)[0][1]
        expected = references[summed]
        assert list(state) == list(expected)
        assert any("towers" in name for name in state) == (modules == "halves")
        different = [
            name for name, value in expected.items() if not torch.equal(state[name], value)
        ]
        assert different == [], (layout, runs[index])
        assert all(rank[index][0] for rank in results), (
            "outputs differ from the flat engine's",
            runs[index],
        )


def train_case(
    architecture: str, layout: tuple[int, int, int], changes: dict[str, Any]
) -> dict[str, Any]:
    """On every rank: the outputs before training, with and without the transform, and the weights
    after SIZES."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    partition = random_partition(layout, 1)
    results: dict[str, Any] = {}

    def engine_of(used: tuple[int, int, int] | None) -> Engine:
        ranker = build_ranker(SCHEMA, model_settings(architecture), partition, SEED, "meta")
        return tower_engine(ranker, train_settings(world_size, used, **changes), SEED, partition)

    results["flat"] = engine_of(None).predict(share(32, 9, rank, world_size))
    engine = engine_of(layout if world_size > 1 else None)
    results["transformed"] = engine.predict(share(32, 9, rank, world_size))
    losses = []
    for step, rows in enumerate(SIZES):
        losses.append(engine.train_step(share(rows, step, rank, world_size), engine.serving_loss))
    return results | {
        "state": engine.gather_state(),
        "plan": engine.plan_summary(),
        "losses": losses,
    }


def train_cases(architecture: str, layout: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
    return {case: train_case(architecture, layout, changes) for case, changes in CASES.items()}


@cache
def trained(
    architecture: str, layout: tuple[int, int, int], run: int = 0
) -> list[dict[str, dict[str, Any]]]:
    """Results by rank; each ``run`` is a launch of its own."""
    return run_on_ranks(train_cases, (architecture, layout), layout[0] * layout[1], 1)


@pytest.mark.parametrize(("architecture", "layout"), [("dlrm", (2, 2, 1)), ("dcn", (3, 2, 1))])
def test_outputs_equal_the_flat_engine_and_training_equals_one_process(
    architecture: str, layout: tuple[int, int, int]
) -> None:
    results = trained(architecture, layout)
    expected = run_on_ranks(train_cases, (architecture, layout), 1, 1)[0]
    for case in CASES:
        for rank in results:
            # Rows: the order of a sum
            same = torch.equal if case in ("sgd", "clipped") else torch.allclose
            assert same(rank[case]["transformed"], rank[case]["flat"]), case
        state = results[0][case]["state"]
        assert list(state) == list(expected[case]["state"])
        assert any("towers" in name for name in state)
        for name, value in expected[case]["state"].items():
            torch.testing.assert_close(
                state[name], value, rtol=0, atol=TOLERANCE, msg=f"{case} {name}"
            )
        losses = torch.tensor([rank[case]["losses"] for rank in results]).mean(dim=0)
        torch.testing.assert_close(
            losses, torch.tensor(expected[case]["losses"]), rtol=0, atol=TOLERANCE
        )


def test_two_runs_are_bitwise_equal() -> None:
    first, second = trained("dlrm", (2, 2, 1))[0], trained("dlrm", (2, 2, 1), run=1)[0]
    for case in CASES:
        assert all(
            torch.equal(value, second[case]["state"][name])
            for name, value in first[case]["state"].items()
        )


def test_a_tower_s_tables_stay_on_its_host_in_the_kind_asked_for() -> None:
    partition = random_partition((2, 2, 1), 1)
    for case, kinds in {
        "sgd": {"column_wise"},
        "rowwise_adagrad": {"row_wise"},
        "clipped": {"table_wise"},
    }.items():
        plan = {
            row["table"].removeprefix("table_"): row
            for row in trained("dlrm", (2, 2, 1))[0][case]["plan"]
        }
        assert plan.keys() == FEATURES.keys()
        assert {row["kind"] for row in plan.values()} == kinds
        hosts = [
            {rank // 2 for name in tower for rank in plan[name]["ranks"]}
            for tower in partition.towers
        ]
        assert all(len(found) == 1 for found in hosts) and set.union(*hosts) == {0, 1}


ADAM = {"dense_optimizer": "adam", "table_learning_rate": 0.05}


def make_engine(
    layout: tuple[int, int, int] | None, seed: int, optimizer: str, kind: str
) -> Engine:
    partition = random_partition((4, 1, 1), 2)
    settings = train_settings(
        distributed.get_world_size(), layout, table_optimizer=optimizer, sharding=kind, **ADAM
    )
    return tower_engine(
        build_ranker(SCHEMA, model_settings("dcn"), partition, seed, "meta"),
        settings,
        seed,
        partition,
    )


def step_on(engine: Engine, step: int) -> None:
    engine.train_step(share(SIZES[step], step, engine.rank, engine.world_size), engine.serving_loss)


def save_and_load(folder: Path, optimizer: str, kind: str) -> dict[str, Any]:
    """Save with and without the transform, load each into the other and into other hosts: all
    weights and states."""
    states: dict[str, Any] = {}
    layouts = {"transformed": (2, 2, 1), "flat": None}
    for source, layout in layouts.items():
        engine = make_engine(layout, SEED, optimizer, kind)
        step_on(engine, 0)
        step_on(engine, 1)
        engine.save(folder / source)
        states[source] = {"saved": everything(engine)}
        for target, other in {**layouts, "other hosts": (4, 1, 1)}.items():
            loaded = make_engine(other, SEED + 1, optimizer, kind)
            loaded.load(folder / source)
            states[source][target] = everything(loaded)
            step_on(loaded, 2)
            states[source][f"{target} trained on"] = loaded.gather_state()
    return states


def load_elsewhere(
    folder: Path, optimizer: str, kind: str, layout: tuple[int, int, int] | None
) -> dict[str, Tensor]:
    engine = make_engine(layout, SEED + 1, optimizer, kind)
    engine.load(folder)
    return everything(engine)


RESUMED = [("adagrad", "column_wise"), ("rowwise_adagrad", "row_wise")]  # table optimiser, sharding


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Results of RESUMED by rank, and what one rank reads, by (optimiser, kind, what was saved)."""
    folders = {case: tmp_path_factory.mktemp(case[0]) for case in RESUMED}
    saving = {case: (4, (folder, *case)) for case, folder in folders.items()}
    reading: dict[Any, Case] = {
        (*case, source): (1, (folder / source, *case, None))
        for case, folder in folders.items()
        for source in ("transformed", "flat")
    }
    return run_cases(save_and_load, saving), run_cases(load_elsewhere, reading)


@pytest.mark.parametrize(("optimizer", "kind"), RESUMED)
def test_checkpoints_are_the_same_with_and_without_the_transform(
    optimizer: str, kind: str, resumed: tuple[dict[Any, Any], dict[Any, Any]]
) -> None:
    results = resumed[0][optimizer, kind][0]
    assert list(results) == ["transformed", "flat"]
    for source, states in results.items():
        saved = states["saved"]
        assert any("towers" in name and "exp_avg" in name for name in saved)
        assert any("momentum" in name for name in saved)
        elsewhere = {"one rank": resumed[1][optimizer, kind, source][0]}
        for target in ("transformed", "flat", "other hosts"):
            elsewhere[target] = states[target]
            trained_on, whole = states[f"{target} trained on"], states["flat trained on"]
            for name, value in whole.items():
                torch.testing.assert_close(
                    trained_on[name], value, rtol=0, atol=TOLERANCE, msg=f"{target} {name}"
                )
        for target, loaded in elsewhere.items():
            assert loaded.keys() == saved.keys(), (source, target)
            assert [n for n, v in saved.items() if not torch.equal(v, loaded[n])] == [], (
                source,
                target,
            )


def sent_across(layout: tuple[int, int, int], precision: Literal["fp32", "fp16"]) -> dict[str, Any]:
    """On every rank: bytes of floats that one training step sends to other hosts, and the
    outputs."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    partition = random_partition(layout, 3)
    on_wire = CommunicationSettings(forward=precision, backward=precision)
    results = {}
    for name, used in {"flat": None, "transformed": layout}.items():
        ranker = build_ranker(SCHEMA, model_settings("dcn"), partition, SEED, "meta")
        nn.init.ones_(ranker.output.weight)  # else a new ranker says the same of every example
        wire = on_wire if used else CommunicationSettings()
        settings = train_settings(world_size, used).model_copy(update={"communication": wire})
        engine = tower_engine(ranker, settings, SEED, partition)
        batch = share(SIZES[0], 0, rank, world_size)
        outputs = engine.predict(batch)
        with AllToAllRecorder() as recorder:
            engine.train_step(batch, engine.serving_loss)
        floats = [a for a in recorder.found if a.dtype.is_floating_point]
        across = [a.bytes_across(rank, layout[1]) for a in floats]
        messages = [
            sum(1 for size in a.sent if size) for a in floats if a.bytes_across(rank, layout[1])
        ]
        results[name] = {"outputs": outputs, "bytes": sum(across), "messages": messages}
    return results


def tower_widths(partition: Partition) -> int:
    """Sum of the towers' outputs: one vector of 4 a tower, the embedding itself for a tower of one
    feature."""
    return sum(DIMENSION if len(tower) == 1 else 4 for tower in partition.towers)


PRECISIONS = ("fp32", "fp16", "bf16")


@cache
def sent() -> dict[str, list[dict[str, Any]]]:
    """Results of sent_across by rank, by precision."""
    return run_cases(
        sent_across, {precision: (4, ((2, 2, 1), precision)) for precision in PRECISIONS}
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_tower_outputs_cross_hosts(precision: str) -> None:
    layout = (2, 2, 1)
    ranks = sent()[precision]
    hosts, examples = layout[0], SIZES[0]
    # Dossier 2.5: S (T - 1) / T forward, the same backward; S of all ranks' examples.
    flat = 2 * examples * len(FEATURES) * DIMENSION * 4 * (hosts - 1) // hosts
    partition = random_partition(layout, 3)
    towers = (
        2
        * examples
        * (tower_widths(partition) + len(partition.towers))  # and each one's sum of own weights
        * (4 if precision == "fp32" else 2)
        * (hosts - 1)
        // hosts
    )
    assert sum(rank["flat"]["bytes"] for rank in ranks) == flat
    assert sum(rank["transformed"]["bytes"] for rank in ranks) == towers < flat
    for rank in ranks:
        # Its peers and itself
        assert all(count <= hosts for count in rank["transformed"]["messages"])
        tolerance = {"fp16": 1e-3, "bf16": 1e-2, "fp32": 0.0}[precision]
        outputs = rank["transformed"]["outputs"], rank["flat"]["outputs"]
        torch.testing.assert_close(*outputs, rtol=0, atol=tolerance)
        assert torch.equal(*outputs) == (precision == "fp32")


def test_towers_go_largest_first_to_the_group_with_the_fewest_bytes() -> None:
    towers = [["a"], ["b", "c"], ["d"], ["e"]]
    sizes = {"a": 50, "b": 20, "c": 20, "d": 30, "e": 10}
    assert place_towers(towers, sizes, 2) == [[0, 3], [1, 2]]


def test_hosts_that_do_not_fit_the_towers_are_refused() -> None:
    assert tower_ranks(world_size=8, ranks_per_host=2, hosts_per_tower=2, towers=2) == 4
    with pytest.raises(
        InputError,
        match=r"hosts_per_tower: 3 hosts per tower: 8 ranks are 4 hosts of 2; use a divisor of 4",
    ):
        tower_ranks(world_size=8, ranks_per_host=2, hosts_per_tower=3, towers=4)
    with pytest.raises(
        InputError, match=r"3 towers leave 1 without one; raise hosts_per_tower, or make at least 4"
    ):
        tower_ranks(world_size=8, ranks_per_host=2, hosts_per_tower=1, towers=3)


def build(changes: dict[str, Any], towers: bool) -> None:
    partition = random_partition((1, 1, 1), 0)
    model = model_settings("dlrm").model_copy(update={"towers": towers})
    ranker = build_ranker(SCHEMA, model, partition if towers else None, SEED, "meta")
    tower_engine(ranker, train_settings(1, (1, 1, 1), **changes), SEED, partition)


@pytest.mark.parametrize(
    ("changes", "towers", "message"),
    [
        (
            {"sharding": "data_parallel"},
            True,
            r"key 'sharding': data_parallel does not stay inside a tower's hosts",
        ),
        (
            {"table_sharding": {"table_shop": "grid_shard"}},
            True,
            r"key 'table_sharding.table_shop': grid_shard does not stay inside",
        ),
        (
            {"table_sharding": {"table_shp": "row_wise"}},
            True,
            r"no table 'table_shp'; did you mean 'table_shop'",
        ),
        ({}, False, r"the model has no towers; set module.enabled: true"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], towers: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_on_ranks(build, (changes, towers), 1, 1)
