"""The input of planning: a model's tables, as described in a YAML file; no weights, no torch."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from recsys.config import InputError, Settings
from recsys.units import FLOAT_BYTES

WeightType = Literal["fp32", "fp16"]
CommType = Literal["fp32", "fp16", "bf16", "int8"]
TableOptimizer = Literal["sgd", "rowwise_adagrad", "adagrad", "adam"]
Kind = Literal[
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
BYTES_OF = {"fp32": FLOAT_BYTES, "fp16": 2, "bf16": 2, "int8": 1}
SMALLEST_COLUMN_SHARD = 4  # FBGEMM's rows are multiples of 4 floats
DENSE_STATE_WORDS = {"sgd": 0, "adagrad": 1, "adam": 2}
ROW_STEP = (math.sqrt(5) - 1) / 2  # golden ratio: its multiples spread evenly over [0, 1)
POOLING_STEP = math.sqrt(2) - 1


@dataclass(frozen=True)
class ShardingKind:
    """How a kind of sharding splits a table.

    Attributes:
        rows: whether rows are split; a reduce-scatter then adds up the parts of pooled outputs over
            ranks.
        columns: whether columns are split.
        spans: the ranks used by a block of columns: one rank, those of one node, or all.
        inside: the kind that does the same among the ranks of one node; None if there is none.
    """

    rows: bool
    columns: bool
    spans: Literal["rank", "node", "all"]
    inside: Kind | None


SHARDINGS: dict[Kind, ShardingKind] = {
    "data_parallel": ShardingKind(rows=False, columns=False, spans="all", inside=None),
    "table_wise": ShardingKind(rows=False, columns=False, spans="rank", inside="table_wise"),
    "column_wise": ShardingKind(rows=False, columns=True, spans="rank", inside="column_wise"),
    "row_wise": ShardingKind(rows=True, columns=False, spans="all", inside="row_wise"),
    "table_row_wise": ShardingKind(rows=True, columns=False, spans="node", inside="row_wise"),
    "table_column_wise": ShardingKind(rows=False, columns=True, spans="node", inside="column_wise"),
    "grid_shard": ShardingKind(rows=True, columns=True, spans="node", inside=None),
}


class Spread(Settings):
    """Values spread evenly in their logarithm over [low, high], without random numbers.

    Attributes:
        low: smallest value.
        high: largest value.
    """

    low: PositiveFloat
    high: PositiveFloat

    def at(self, quantile: float) -> float:
        """The value at ``quantile`` of [0, 1)."""
        return self.low * (self.high / self.low) ** quantile


class TableGroup(Settings):
    """A group of similar tables; a :class:`Spread` or a list of dimensions makes them differ.

    Attributes:
        name: name of the group; its tables are numbered.
        count: number of tables.
        rows: rows of each table.
        dimension: columns of each table, or a list to choose from.
        pooling: mean number of ids per sample, over all features that share a table.
        skew: exponent of the ids' power law, which decides how useful a cache of hot rows is.
        dtype: type of the weights.
        features: features that share a table, each with its own output.
    """

    name: str
    count: PositiveInt = 1
    rows: PositiveInt | Spread
    dimension: PositiveInt | list[PositiveInt]
    pooling: PositiveFloat | Spread = 1.0
    skew: NonNegativeFloat = 1.0
    dtype: WeightType = "fp32"
    features: PositiveInt = 1

    @model_validator(mode="after")
    def _values_make_sense(self) -> "TableGroup":
        wrong = [d for d in self.dimensions() if d % SMALLEST_COLUMN_SHARD]
        if wrong or not self.dimensions():
            raise ValueError(
                f"dimension must be a multiple of {SMALLEST_COLUMN_SHARD} (FBGEMM), "
                f"not {wrong[0] if wrong else 'empty'}"
            )
        for spread in (self.rows, self.pooling):
            if isinstance(spread, Spread) and spread.low > spread.high:
                raise ValueError(f"low {spread.low:g} is above high {spread.high:g}")
        return self

    def dimensions(self) -> list[int]:
        """The dimensions that the tables of this group use in turn."""
        return self.dimension if isinstance(self.dimension, list) else [self.dimension]


class PlannedModel(Settings):
    """A model to plan: its tables, its batch size, and what else takes memory and time.

    Attributes:
        batch_size: samples per rank.
        table_optimizer: optimiser of the embedding tables; its state counts as memory.
        forward_comm: precision of embeddings between ranks.
        backward_comm: precision of their gradients between ranks.
        kinds: sharding kinds to choose from; null: all that compute exactly the same as the
            unsharded optimiser, so none that splits columns with row-wise AdaGrad (each column
            shard would keep its own moment).
        load_factors: cache sizes to try, as shares of a table's rows.
        dense_parameters: parameters of the dense part.
        dense_optimizer: optimiser of the dense part; its state counts as memory.
        dense_mflops_per_sample: MFLOPs per sample in the dense part's forward pass.
        tables: the tables.
    """

    batch_size: PositiveInt
    table_optimizer: TableOptimizer = "rowwise_adagrad"
    forward_comm: CommType = "fp32"
    backward_comm: CommType = "fp32"
    kinds: list[Kind] | None = None
    load_factors: list[PositiveFloat] = Field(default=[0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
    dense_parameters: NonNegativeInt = 0
    dense_optimizer: Literal["sgd", "adagrad", "adam"] = "adam"
    dense_mflops_per_sample: NonNegativeFloat = 0.0
    tables: list[TableGroup] = Field(min_length=1)

    def allowed_kinds(self) -> tuple[Kind, ...]:
        """The kinds to choose from, in a fixed order."""
        if self.kinds is not None:
            return tuple(kind for kind in SHARDINGS if kind in self.kinds)
        return tuple(kind for kind in SHARDINGS if computes_exactly(kind, self.table_optimizer))


@dataclass(frozen=True)
class Table:
    """One embedding table: ``rows`` x ``dimension`` weights of ``dtype``."""

    name: str
    rows: int
    dimension: int
    pooling: float
    skew: float
    dtype: WeightType
    features: int = 1

    @property
    def parameters(self) -> int:
        """Number of weights in the table."""
        return self.rows * self.dimension

    def held_bytes(self, optimizer: TableOptimizer) -> int:
        """Bytes of the unsplit table's weights and optimiser state."""
        return shard_bytes(self.rows, self.dimension, self.dtype, optimizer)


def expand_tables(model: PlannedModel) -> list[Table]:
    """Every table of ``model``, named ``name`` or, in a group of several, ``name_0``, ``name_1``...

    Raises:
        InputError: two tables have the same name.
    """
    tables: list[Table] = []
    for group in model.tables:
        dimensions = group.dimensions()
        for index in range(group.count):
            tables.append(
                Table(
                    name=group.name if group.count == 1 else f"{group.name}_{index}",
                    rows=round(_value(group.rows, index * ROW_STEP)),
                    dimension=dimensions[index % len(dimensions)],
                    pooling=_value(group.pooling, index * POOLING_STEP),
                    skew=group.skew,
                    dtype=group.dtype,
                    features=group.features,
                )
            )
    counts = Counter(table.name for table in tables)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise InputError(
            f"tables: the name {twice[0]!r} appears twice; give each group of tables its own name"
        )
    return tables


def state_bytes(optimizer: TableOptimizer, rows: int, columns: int) -> int:
    """Bytes of a shard's optimiser state, which FBGEMM always allocates in fp32."""
    rowwise = optimizer == "rowwise_adagrad"
    return rows * (1 if rowwise else columns * DENSE_STATE_WORDS[optimizer]) * FLOAT_BYTES


def shard_bytes(rows: int, columns: int, dtype: WeightType, optimizer: TableOptimizer) -> int:
    """Bytes of a shard's weights and optimiser state."""
    return rows * columns * BYTES_OF[dtype] + state_bytes(optimizer, rows, columns)


def computes_exactly(kind: Kind, optimizer: TableOptimizer) -> bool:
    """Whether a table split this way trains exactly as if unsplit: row-wise AdaGrad does not when
    columns are split, since each block keeps its own moment."""
    return optimizer != "rowwise_adagrad" or not SHARDINGS[kind].columns


def _value(value: float | Spread, position: float) -> float:
    return value.at(position % 1.0) if isinstance(value, Spread) else value
