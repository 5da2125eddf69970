"""What is planned: a model's tables as a YAML file describes them; no weights, no torch."""

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
KINDS: tuple[Kind, ...] = (
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
COLUMN_KINDS: tuple[Kind, ...] = ("column_wise", "table_column_wise", "grid_shard")
BYTES_OF = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
STATE_BYTES = 4  # FBGEMM keeps optimiser state in fp32, also for fp16 tables
DENSE_STATE_WORDS = {"sgd": 0, "adagrad": 1, "adam": 2}
ROW_STEP = (math.sqrt(5) - 1) / 2  # golden ratio: its multiples spread evenly over [0, 1)
POOLING_STEP = math.sqrt(2) - 1


class Spread(Settings):
    """Values spread evenly in their logarithm over [low, high], without a random number."""

    low: PositiveFloat
    high: PositiveFloat

    def at(self, quantile: float) -> float:
        """The value at ``quantile`` of [0, 1)."""
        return self.low * (self.high / self.low) ** quantile


class TableGroup(Settings):
    """``count`` tables alike; a :class:`Spread` or a list of dimensions makes them differ.

    ``pooling`` is the mean number of ids a sample, over all ``features`` that share a table, each
    with an output of its own. ``skew`` is the exponent of the ids' power law, which says what a
    cache of hot rows is worth.
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
        wrong = [d for d in self.dimensions() if d % 4]
        if wrong or not self.dimensions():
            raise ValueError(
                f"dimension must be a multiple of 4 (FBGEMM), not {wrong[0] if wrong else 'empty'}"
            )
        for spread in (self.rows, self.pooling):
            if isinstance(spread, Spread) and spread.low > spread.high:
                raise ValueError(f"low {spread.low:g} is above high {spread.high:g}")
        return self

    def dimensions(self) -> list[int]:
        """The dimensions that the tables of this group take in turn."""
        return self.dimension if isinstance(self.dimension, list) else [self.dimension]


class PlannedModel(Settings):
    """A model to plan: its tables, its batch and what else takes memory and time.

    ``batch_size`` counts samples a rank. ``kinds`` are those to choose from; by default all
    that compute exactly what the unsharded optimiser does, so none that splits columns with
    row-wise AdaGrad (each column shard would keep a moment of its own). ``load_factors`` are
    the shares of a table's rows tried as the size of its cache.
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
            return tuple(kind for kind in KINDS if kind in self.kinds)
        exact_columns = self.table_optimizer != "rowwise_adagrad"
        return tuple(kind for kind in KINDS if exact_columns or kind not in COLUMN_KINDS)


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
        """Weights of the table."""
        return self.rows * self.dimension


def expand_tables(model: PlannedModel) -> list[Table]:
    """Every table of ``model``, named ``name`` or, in a group of several, ``name_0``, ``name_1``...

    Raises:
        InputError: two tables have one name.
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
            f"tables: the name {twice[0]!r} stands twice; give each group of tables its own name"
        )
    return tables


def state_bytes(optimizer: TableOptimizer, rows: int, columns: int) -> int:
    """Bytes of optimiser state of a shard: fp32 whatever the weights are, as FBGEMM allocates
    it."""
    words = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": columns, "adam": 2 * columns}[optimizer]
    return rows * words * STATE_BYTES


def table_bytes(table: Table, optimizer: TableOptimizer) -> int:
    """Bytes of an unsplit table's weights and optimiser state."""
    return table.parameters * BYTES_OF[table.dtype] + state_bytes(
        optimizer, table.rows, table.dimension
    )


def _value(value: float | Spread, position: float) -> float:
    return value.at(position % 1.0) if isinstance(value, Spread) else value
