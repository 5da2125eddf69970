"""Settings for splitting tables over ranks and hosts, and for communication between these."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from recsys.config import InputError, Settings, load_settings, nearest_hint
from recsys.planning.hardware import CPU, GPU, Hardware
from recsys.planning.tables import SHARDINGS, Kind, TableOptimizer, computes_exactly

Sharding = Literal["planner", Kind]


def _read_if_a_file(hardware: Any) -> Any:
    return load_settings(Path(hardware), Hardware) if isinstance(hardware, str | Path) else hardware


HardwareOrFile = Annotated[Hardware, BeforeValidator(_read_if_a_file)]


class CommunicationSettings(Settings):
    """Precision of numbers sent between ranks; weights and optimisers stay float32. int8 works only
    with tables that are not split by rows. Neo's recipe is fp16 forward and bf16 backward.

    Attributes:
        forward: precision of pooled embeddings.
        backward: precision of their gradients.
        gradients: precision of the all-reduce of the gradients of everything that each rank holds
            in full.
    """

    forward: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    backward: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    gradients: Literal["fp32", "fp16", "bf16"] = "fp32"


class HostSettings(Settings):
    """Ranks, and the hosts and devices that they run on.

    Attributes:
        world_size: ranks over all nodes.
        ranks_per_host: ranks per host for the hierarchical sharding kinds; null: LOCAL_WORLD_SIZE.
        device: cpu or cuda.
    """

    world_size: PositiveInt = 2
    ranks_per_host: PositiveInt | None = None
    device: Literal["cpu", "cuda"] = "cpu"

    @field_validator("ranks_per_host")
    @classmethod
    def _divides_the_ranks(cls, ranks: int | None, info: ValidationInfo) -> int | None:
        world_size = info.data.get("world_size", 1)
        if ranks is not None and world_size % ranks:
            raise ValueError(f"world_size {world_size} is not a multiple of it")
        return ranks


class ShardingSettings(HostSettings):
    """The inputs of a sharding plan.

    ``global_batch_size`` counts examples over all ranks. ``memory_gb`` is the memory limit of a
    rank's process: ``reserved_gb`` of ``hardware``, tables, their optimiser state, the gradients of
    data_parallel tables, the dense part and buffers.

    ``sharding`` is how every table is split; ``table_sharding`` fixes single tables, by name, and
    overrides the towers of a partition. The planner uses the bandwidths of ``hardware`` (or of a
    YAML file at that path; by default, it follows ``device``) and counts ``ids_per_list`` ids per
    list. On a GPU it may also put rows into ``host_memory_gb`` GiB of the host's memory per rank,
    all rows or all but a cache (UVM).

    ``table_precision`` is the precision of the tables' rows; their outputs, gradients and optimiser
    state stay float32. On the CPU, FBGEMM rounds fp16 rows to nearest: its stochastic rounding does
    nothing there. ``table_memory: file`` keeps all tables but data_parallel ones, with their
    optimiser state, in unnamed files in ``table_file_dir``, so they are limited by the disk and not
    by ``memory_gb``.
    """

    global_batch_size: PositiveInt = 256
    table_optimizer: TableOptimizer = "adagrad"
    sharding: Sharding = "planner"
    table_sharding: dict[str, Kind] = Field(default_factory=dict)
    memory_gb: PositiveFloat = Field(default=4.0, description="GiB per rank")
    host_memory_gb: NonNegativeFloat = Field(default=0.0, description="GiB per rank, with a GPU")
    hardware: HardwareOrFile = CPU
    ids_per_list: PositiveFloat = 5.0
    table_precision: Literal["fp32", "fp16"] = "fp32"
    table_memory: Literal["ram", "file"] = "ram"
    table_file_dir: Path = Path()
    communication: CommunicationSettings = CommunicationSettings()

    @model_validator(mode="before")
    @classmethod
    def _hardware_follows_the_device(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("device") == "cuda":
            return {"hardware": GPU, **values}
        return values

    @field_validator("table_optimizer")
    @classmethod
    def _has_a_kernel(cls, optimizer: str, info: ValidationInfo) -> str:
        if optimizer == "adam" and info.data.get("device") == "cpu":
            raise ValueError(
                "adam has no kernel on the CPU; there are: rowwise_adagrad, adagrad, sgd"
            )
        return optimizer

    @field_validator("sharding", "table_sharding")
    @classmethod
    def _computes_exactly(cls, kinds: Any, info: ValidationInfo) -> Any:
        optimizer = info.data.get("table_optimizer")
        for table, kind in _by_table(kinds).items():
            if optimizer is not None and not computes_exactly(kind, optimizer):
                raise ValueError(inexact(kind, optimizer, table))
            if kind == "data_parallel" and optimizer == "adam":
                raise ValueError(f"{kind} of {table} has no adam; use another kind")
        return kinds

    @field_validator("host_memory_gb")
    @classmethod
    def _is_beside_a_gpu(cls, size: float, info: ValidationInfo) -> float:
        if size and info.data.get("device") == "cpu":
            raise ValueError("is for device: cuda; on the CPU memory_gb is the host's memory")
        return size

    @field_validator("hardware")
    @classmethod
    def _is_of_the_device(cls, hardware: Hardware, info: ValidationInfo) -> Hardware:
        device = info.data.get("device", hardware.device)
        if hardware.device != device:
            raise ValueError(
                f"describes ranks of device {hardware.device}, and device is {device}; name the "
                "file of such a rank, or leave hardware out"
            )
        return hardware

    @field_validator("table_precision")
    @classmethod
    def _has_such_rows(cls, precision: str, info: ValidationInfo) -> str:
        kinds = _by_table(info.data.get("sharding")) | _by_table(info.data.get("table_sharding"))
        if precision == "fp16" and "data_parallel" in kinds.values():
            raise ValueError(
                "fp16 has no kernel for data_parallel tables; use fp32, or split them another way "
                "in sharding and table_sharding"
            )
        return precision


def inexact(kind: Kind, optimizer: str, table: str) -> str:
    """The reason why ``table`` may not be split as ``kind``."""
    return (
        f"{kind} changes what {optimizer} computes for {table}; use table_wise, row_wise, "
        "table_row_wise or data_parallel, or table_optimizer adagrad"
    )


def no_int8(kind: Kind, table: str) -> str:
    """The reason why ``table``, split as ``kind``, cannot be sent as int8."""
    return (
        f"int8 does not work with {kind} of {table}, whose parts are added up on the way "
        "(reduce-scatter); use fp16 or bf16, or split the table table_wise, column_wise, "
        "table_column_wise or data_parallel"
    )


def _by_table(kinds: str | dict[str, Kind] | None) -> dict[str, Kind]:
    """The given kinds, by description of their tables."""
    if isinstance(kinds, dict):
        return kinds
    return {"every table": cast(Kind, kinds)} if kinds in SHARDINGS else {}


def check_table_names(settings: Settings, key: str, tables: Sequence[str]) -> None:
    """Check that the dictionary ``key`` of ``settings`` names only ``tables``.

    Raises:
        InputError: it names another table.
    """
    for table in getattr(settings, key):
        if table not in tables:
            raise InputError(
                f"{settings.where(key)}: no table {table!r}; {nearest_hint(table, tables)}"
            )
