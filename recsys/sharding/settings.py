"""How tables are split over ranks and hosts, and what travels between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from recsys.config import InputError, Settings, load_settings, nearest_hint
from recsys.planning.hardware import CPU, Hardware
from recsys.planning.tables import Kind

Sharding = Literal["planner", Kind]


def _read_if_a_file(hardware: Any) -> Any:
    return load_settings(Path(hardware), Hardware) if isinstance(hardware, str | Path) else hardware


HardwareOrFile = Annotated[Hardware, BeforeValidator(_read_if_a_file)]


class CommunicationSettings(Settings):
    """How many bits a number has on its way between ranks; weights and optimisers stay float32.

    ``forward`` is for pooled embeddings, ``backward`` for their gradients, ``gradients`` for the
    all-reduce of the gradients of all that every rank holds whole. int8 goes with tables that are
    not split by rows only. Neo's recipe is fp16 forward and bf16 backward.
    """

    forward: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    backward: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    gradients: Literal["fp32", "fp16", "bf16"] = "fp32"


class HostSettings(Settings):
    """Ranks, and the hosts and devices that they are on.

    ``world_size`` counts ranks over all nodes. A host, as the hierarchical sharding kinds see it,
    has ``ranks_per_host`` ranks; None: as many as LOCAL_WORLD_SIZE says.
    """

    world_size: PositiveInt = 2
    ranks_per_host: PositiveInt | None = None
    device: Literal["cpu", "cuda"] = "cpu"

    @field_validator("ranks_per_host")
    @classmethod
    def _divides_the_ranks(cls, ranks: int | None, info: ValidationInfo) -> int | None:
        world_size = info.data.get("world_size", 1)
        if ranks is not None and world_size % ranks:
            raise ValueError(f"world_size {world_size} is no multiple of it")
        return ranks


class ShardingSettings(HostSettings):
    """What a plan is made from, and the tables that it is of.

    ``global_batch_size`` counts examples over all ranks. ``memory_gb`` is what one rank's
    process may take: ``reserved_gb`` of ``hardware`` by itself, then tables, their optimiser state,
    the gradients of data_parallel tables, the dense part and buffers.

    ``sharding`` is how every table is split; ``table_sharding`` fixes single tables, by name, and
    goes before the towers of a partition. The planner reckons with the bandwidths of
    ``hardware`` (or the YAML file of that path) and with ``ids_per_list`` ids an example of a list.

    ``table_precision`` is that of the tables' rows; what they give out, gradients and optimiser
    state stay float32. FBGEMM rounds fp16 rows to nearest on the CPU: its stochastic rounding does
    nothing there. ``table_memory: file`` keeps all but data_parallel tables and their optimiser
    state in nameless files in ``table_file_dir``, so the disk bounds them and ``memory_gb`` does
    not.
    """

    global_batch_size: PositiveInt = 256
    table_optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "adagrad"
    sharding: Sharding = "planner"
    table_sharding: dict[str, Kind] = Field(default_factory=dict)
    memory_gb: PositiveFloat = Field(default=4.0, description="GiB a rank")
    hardware: HardwareOrFile = CPU
    ids_per_list: PositiveFloat = 5.0
    table_precision: Literal["fp32", "fp16"] = "fp32"
    table_memory: Literal["ram", "file"] = "ram"
    table_file_dir: Path = Path()
    communication: CommunicationSettings = CommunicationSettings()


def check_table_names(settings: ShardingSettings, tables: Sequence[str]) -> None:
    """Check that ``table_sharding`` names only ``tables``.

    Raises:
        InputError: it names another.
    """
    for table in settings.table_sharding:
        if table not in tables:
            raise InputError(
                f"{settings.where('table_sharding')}: no table {table!r}; "
                f"{nearest_hint(table, tables)}"
            )
