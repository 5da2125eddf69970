"""Models and plans that the planner's predictions are held against: plans to fit on, and others to
judge by."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingType

from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.factory import build_ranker
from recsys.models.names import TABLE_PREFIX
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.planning.tables import Kind, PlannedModel, TableGroup
from recsys.sharding.plan import BagSharder
from recsys.training.settings import TrainSettings

DENSE = 4
CROWDED_PART = 4  # of as many tables all but one sit on the first rank
LAYERS = [64]
MEMORY = 4 * 2**30  # bytes per rank


@dataclass(frozen=True)
class Model:
    """A DLRM: rows and mean ids per example of each table, one dimension, the global batch."""

    name: str
    tables: tuple[tuple[int, int], ...]
    dimension: int
    batch_size: int = 2048
    table_optimizer: str = "rowwise_adagrad"

    @cached_property
    def schema(self) -> Schema:
        """One feature a table: an id where the mean is one, else a list."""
        features = [
            CategoricalFeature(f"f{index}", rows, "id" if ids == 1 else "list")
            for index, (rows, ids) in enumerate(self.tables)
        ]
        dense = [f"d{index}" for index in range(DENSE)]
        return Schema(
            "bench", dense, features, ["all"], [], initial_base_rate=0.2, planted_groups={}
        )

    @property
    def settings(self) -> ModelSettings:
        """The ranker's own settings."""
        return ModelSettings(
            embedding_dimension=self.dimension, dense_layers=LAYERS, over_layers=LAYERS
        )

    def planned(self, world_size: int, dense_parameters: int) -> PlannedModel:
        """What the planner is told of it."""
        return PlannedModel(
            batch_size=self.batch_size // world_size,
            table_optimizer=self.table_optimizer,  # pyright: ignore[reportArgumentType]
            dense_parameters=dense_parameters,
            dense_mflops_per_sample=2 * dense_parameters / 1e6,
            tables=[
                TableGroup(
                    name=f"{TABLE_PREFIX}f{index}", rows=rows, dimension=self.dimension, pooling=ids
                )
                for index, (rows, ids) in enumerate(self.tables)
            ],
        )


def _many(count: int, rows: list[int], ids: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((rows[i % len(rows)], ids[i % len(ids)]) for i in range(count))


FITTED = (
    Model("6 tables, dimension 64", _many(6, [100_000, 20_000], [1, 8, 2]), 64),
    Model("24 small tables, dimension 32", _many(24, [2_000, 8_000], [1, 1, 3]), 32),
    Model("3 tables, dimension 128", _many(3, [60_000, 150_000], [4, 12]), 128),
)
JUDGED = (
    Model(
        "4 large tables, dimension 128",
        ((200_000, 1), (200_000, 20), (100_000, 10), (50_000, 1)),
        128,
    ),
    Model("40 small tables, dimension 16", _many(40, [1_000, 500, 3_000], [1, 1, 1, 4]), 16),
    Model(
        "12 tables of all sizes, dimension 64",
        _many(12, [1_000, 300_000, 20_000], [1, 2, 5, 20]),
        64,
    ),
    Model(
        "8 lists, dimension 32, AdaGrad",
        _many(8, [50_000, 10_000], [5, 15]),
        32,
        table_optimizer="adagrad",
    ),
)


@dataclass(frozen=True)
class Ways:
    """One plan: the kind of each table, and the rank of those that stay whole (None elsewhere)."""

    name: str
    kinds: tuple[Kind, ...]
    ranks: tuple[int | None, ...]

    def train(self, model: Model, world_size: int) -> TrainSettings:
        """The engine's settings: the kinds by table."""
        names = [TABLE_PREFIX + feature.name for feature in model.schema.categorical]
        split = {
            name: kind for name, kind in zip(names, self.kinds, strict=True) if kind != "table_wise"
        }
        return TrainSettings(
            world_size=world_size,
            global_batch_size=model.batch_size,
            table_optimizer=model.table_optimizer,  # pyright: ignore[reportArgumentType]
            sharding="table_wise",
            table_sharding=split,  # pyright: ignore[reportArgumentType]
        )

    def partition(self, model: Model) -> Partition | None:
        """Whole tables that share a rank, as the groups that the engine keeps together."""
        names = [feature.name for feature in model.schema.categorical]
        groups = [
            [name for name, rank in zip(names, self.ranks, strict=True) if rank == one]
            for one in sorted({rank for rank in self.ranks if rank is not None})
        ]
        return Partition("bench", groups, []) if groups else None


def plans(model: Model, world_size: int) -> list[Ways]:
    """Kinds x placements, balanced and not."""
    tables = model.tables
    by_ids = sorted(range(len(tables)), key=lambda i: (-tables[i][1], -tables[i][0]))
    by_rows = sorted(range(len(tables)), key=lambda i: (tables[i][0], tables[i][1]))
    spread = {table: place % world_size for place, table in enumerate(by_ids)}
    small, large = set(by_rows[: len(tables) // 2]), set(by_rows[-max(len(tables) // 4, 1) :])
    everything = range(len(tables))

    def mixed(name: str, kinds: Mapping[int, Kind], ranks: Mapping[int, int]) -> Ways:
        of: tuple[Kind, ...] = tuple(kinds.get(i, "table_wise") for i in everything)
        return Ways(
            name, of, tuple(ranks[i] if of[i] == "table_wise" else None for i in everything)
        )

    first = dict.fromkeys(everything, 0)
    crowded = {i: int(i % CROWDED_PART == CROWDED_PART - 1) for i in everything}
    rows: dict[int, Kind] = dict.fromkeys(everything, "row_wise")
    small_copied: dict[int, Kind] = dict.fromkeys(small, "data_parallel")
    found = [
        mixed("whole, spread", {}, spread),
        mixed("whole, on one rank", {}, first),
        mixed("whole, crowded", {}, crowded),
        mixed("rows", rows, first),
        mixed("copies", dict.fromkeys(everything, "data_parallel"), first),
        mixed("small copied, large by rows", rows | small_copied, first),
        mixed("small copied, large whole", small_copied, spread),
        mixed("largest by rows, others whole", dict.fromkeys(large, "row_wise"), spread),
        mixed("largest by rows, others on one rank", dict.fromkeys(large, "row_wise"), first),
    ]
    if model.table_optimizer != "rowwise_adagrad":
        found.append(mixed("columns", dict.fromkeys(everything, "column_wise"), first))
        found.append(
            mixed("largest by columns, others whole", dict.fromkeys(large, "column_wise"), spread)
        )
    return found


def torchrec_plan(model: Model, world_size: int) -> Ways:
    """What TorchRec's own planner chooses of whole tables and rows, with its default bandwidths."""
    cluster = Topology(
        world_size=world_size, local_world_size=world_size, compute_device="cpu", ddr_cap=MEMORY
    )
    names = [TABLE_PREFIX + feature.name for feature in model.schema.categorical]
    kinds = [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]
    planner = EmbeddingShardingPlanner(
        topology=cluster,
        batch_size=model.batch_size // world_size,
        constraints={
            name: ParameterConstraints(sharding_types=kinds, pooling_factors=[float(ids)])
            for name, (_, ids) in zip(names, model.tables, strict=True)
        },
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        stats=[],
    )
    ranker = build_ranker(model.schema, model.settings, None, 1, "meta")
    found = planner.plan(ranker, [cast(ModuleSharder[nn.Module], BagSharder())]).plan["embeddings"]
    assert isinstance(found, EmbeddingModuleShardingPlan)
    shardings = [found[name] for name in names]
    return Ways(
        "TorchRec's planner",
        tuple(cast(Kind, sharding.sharding_type) for sharding in shardings),
        tuple((s.ranks or [0])[0] if s.sharding_type == "table_wise" else None for s in shardings),
    )
