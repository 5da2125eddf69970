"""The commands plan and calibrate: what they print, write and refuse; plans that TorchRec
accepts."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.commands import calibrate, plan
from recsys.config import InputError
from recsys.planning.hardware import Topology, calibration_path, load_hardware
from recsys.planning.plan_report import short_ranks
from recsys.planning.planner import find_plan
from recsys.planning.tables import PlannedModel

REPOSITORY = Path(__file__).resolve().parents[3]
HARDWARE = REPOSITORY / "params" / "hardware"
FOLDER = ("--hardware-folder", str(HARDWARE))
GB = 10**9
TABLES = [
    {"name": "shop", "rows": 10_000, "dimension": 64},
    {"name": "user", "rows": 1_000_000, "dimension": 64, "pooling": 4},
]
MODEL = {"batch_size": 64, "table_optimizer": "adagrad", "tables": TABLES}


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(MODEL))
    return path


def test_prints_and_writes_a_plan(
    model_file: Path,
    tmp_path: Path,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    as_json, figure = tmp_path / "plan.json", tmp_path / "plan.png"
    written = ("--json", str(as_json), "--figure", str(figure))
    command(plan, str(model_file), *FOLDER, "--gpus", "2", *written)
    printed = capsys.readouterr().out
    for word in (
        "shop",
        "user",
        "kernel",
        "HBM",
        "imbalance",
        "predicted step",
        "placement: ",
        "ZionEX",
    ):
        assert word in printed
    first = as_json.read_bytes(), figure.read_bytes()
    found = json.loads(first[0])
    assert [row["table"] for row in found["tables"]] == ["shop", "user"]
    assert len(found["ranks"]) == 2
    assert found["summary"]["step_ms"] == max(rank["ms"] for rank in found["ranks"])
    assert first[1].startswith(b"\x89PNG")
    command(plan, str(model_file), *FOLDER, "--gpus", "2", *written)
    assert (as_json.read_bytes(), figure.read_bytes()) == first


def test_long_plans_are_cut_and_say_so(
    model_file: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(plan, str(model_file), *FOLDER, "--rows", "1")
    assert "1 more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hbm", "10MB"], "does not fit 1 x 8 ranks"),
        (["--hbm", "40"], "does not fit"),
        (["--hbm", "many"], "such as 40GB"),
        (["--hardware", "a100_zionx"], "did you mean 'a100_zionex'?"),
        (["--json", "/nowhere/plan.json"], "there is no folder /nowhere"),
    ],
)
def test_mistakes_are_one_line(
    model_file: Path, arguments: list[str], message: str, command: Callable[..., None]
) -> None:
    with pytest.raises(InputError) as mistake:
        command(plan, str(model_file), *FOLDER, *arguments)
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_hardware_may_be_the_path_of_a_file(
    model_file: Path,
    tmp_path: Path,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = tmp_path / "mine.yaml"
    text = (HARDWARE / "cpu.yaml").read_text()
    mine.write_text(text.replace("source: ", "source: a machine of mine, "))
    command(plan, str(model_file), "--hardware", str(mine), "--ddr", "8GB", "--gpus", "2")
    assert "a machine of mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table_optimiser": "sgd"}, "did you mean 'table_optimizer'?"),
        ({"tables": [{"name": "t", "rows": 10, "dimension": 6}]}, "multiple of 4"),
        (
            {"tables": [{"name": "t", "rows": {"low": 9, "high": 3}, "dimension": 8}]},
            "low 9 is above high 3",
        ),
    ],
)
def test_wrong_model_files(
    model_file: Path, change: dict[str, Any], message: str, command: Callable[..., None]
) -> None:
    model_file.write_text(json.dumps(MODEL | change))
    with pytest.raises(InputError, match=message):
        command(plan, str(model_file), *FOLDER)


def test_planning_imports_no_torch(model_file: Path) -> None:
    code = (
        "import argparse, sys; from recsys.commands import plan; p = argparse.ArgumentParser(); "
        "plan.add_arguments(p); plan.run(p.parse_args()); sys.exit('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(model_file), *FOLDER]
    result = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_calibration_is_read_where_there_is_one(
    model_file: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    cached = calibration_path()
    cached.parent.mkdir(parents=True)
    cached.write_text(
        (HARDWARE / "cpu.yaml").read_text().replace("source: ", "source: measured here, ")
    )
    command(plan, str(model_file), *FOLDER, "--hardware", "cpu", "--ddr", "8GB", "--gpus", "2")
    assert "measured here" in capsys.readouterr().out


@pytest.mark.slow
def test_calibrate_measures_and_caches(
    model_file: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(calibrate, *FOLDER)
    measured = load_hardware("cpu", HARDWARE)
    assert str(calibration_path()) in capsys.readouterr().out
    assert measured.source.startswith("measured by calibrate")
    assert 0 < measured.intra_gb_s < 1000
    assert 0 < measured.ddr.gb_s < 10_000


def test_runs_of_ranks() -> None:
    assert short_ranks([3, 0, 1, 2, 7]) == "0-3, 7"


KINDS = [
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
    "data_parallel",
]


@pytest.mark.parametrize("kind", KINDS)
def test_torchrec_gets_what_its_own_helpers_make(kind: str) -> None:
    """The same ranks, offsets and sizes as construct_module_sharding_plan for the same choice."""
    import torch
    from torchrec.distributed import sharding_plan as helpers
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    from recsys.sharding.plan import BagSharder
    from recsys.sharding.torchrec_plan import to_torchrec_plan

    rows, dimension = 1003, 256
    model = PlannedModel.model_validate(
        MODEL | {"kinds": [kind], "tables": [{"name": "t", "rows": rows, "dimension": dimension}]}
    )
    topology = Topology(load_hardware("cpu", HARDWARE), 2, 2, 0, 8 * GB, 0)
    plan = find_plan(model, topology)
    assert plan is not None
    ranks = plan.tables[0].ranks
    made = to_torchrec_plan(plan, topology, {"t": "embeddings"}).plan["embeddings"]["t"]  # pyright: ignore
    config = EmbeddingBagConfig(
        num_embeddings=rows, embedding_dim=dimension, name="t", feature_names=["t"]
    )
    collection = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    generators = {
        "table_wise": lambda: helpers.table_wise(rank=ranks[0]),
        "column_wise": lambda: helpers.column_wise(ranks=ranks),
        "row_wise": helpers.row_wise,
        "table_row_wise": lambda: helpers.table_row_wise(host_index=ranks[0] // 2),
        "table_column_wise": lambda: helpers.column_wise(ranks=ranks),
        "grid_shard": lambda: helpers.grid_shard(host_indexes=[rank // 2 for rank in ranks[::2]]),
        "data_parallel": helpers.data_parallel,
    }
    own = helpers.construct_module_sharding_plan(
        collection,
        per_param_sharding={"t": generators[kind]()},
        sharder=BagSharder(),
        local_size=2,
        world_size=4,
        device_type="cpu",
    )["t"]
    assert made.sharding_type == kind
    assert made.compute_kernel == ("dense" if kind == "data_parallel" else "fused")
    if kind != "data_parallel":
        shards = made.sharding_spec.shards
        assert [(s.shard_offsets, s.shard_sizes) for s in shards] == [
            (s.shard_offsets, s.shard_sizes) for s in own.sharding_spec.shards
        ]
        assert made.ranks == own.ranks


def test_plan_of_other_tables_is_refused() -> None:
    from recsys.sharding.torchrec_plan import to_torchrec_plan

    topology = Topology(load_hardware("cpu", HARDWARE), 1, 2, 0, 8 * GB, 0)
    plan = find_plan(PlannedModel.model_validate(MODEL), topology)
    assert plan is not None
    with pytest.raises(InputError, match="table 'user' is not in the model"):
        to_torchrec_plan(plan, topology, {"shop": "embeddings"})


def _trained_on_a_plan() -> tuple[float, list[int]]:
    """Runs on every rank: one step of DistributedModelParallel on a plan of this planner."""
    import torch
    from torch import distributed
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from recsys.sharding.plan import BagSharder
    from recsys.sharding.torchrec_plan import to_torchrec_plan

    topology = Topology(load_hardware("cpu", HARDWARE), 1, 2, 0, 8 * GB, 0)
    plans = [
        find_plan(
            PlannedModel.model_validate(MODEL | {"tables": [table], "kinds": [kind]}), topology
        )
        for table, kind in zip(TABLES, ("column_wise", "row_wise"), strict=True)
    ]
    assert plans[0] is not None
    assert plans[1] is not None
    both = replace(plans[0], tables=[*plans[0].tables, *plans[1].tables])
    model = torch.nn.Module()
    model.embeddings = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                num_embeddings=int(str(t["rows"])),
                embedding_dim=64,
                name=str(t["name"]),
                feature_names=[str(t["name"])],
                init_fn=torch.nn.init.ones_,
            )
            for t in TABLES
        ],
    )
    paths = {str(table["name"]): "embeddings" for table in TABLES}
    sharded = DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=to_torchrec_plan(both, topology, paths),
        sharders=[BagSharder()],
    )
    ids = KeyedJaggedTensor.from_lengths_sync(
        ["shop", "user"], torch.tensor([1, 999_999]), torch.tensor([1, 1])
    )
    pooled = sharded.module.embeddings(ids).wait().to_dict()
    total = pooled["shop"].sum() + pooled["user"].sum()
    total.backward()
    return float(total), [distributed.get_rank(), *pooled["shop"].shape]


def test_distributed_model_parallel_runs_a_plan() -> None:
    from recsys.training.launch import run_on_ranks

    assert run_on_ranks(_trained_on_a_plan, (), 2, 1) == [(128.0, [0, 1, 64]), (128.0, [1, 1, 64])]
