"""Models and contenders of bench/towers/speed.py: one class of network at a time, flat and with
towers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.towers.cluster import Shape
from recsys.config import load_settings
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.planning.hardware import Hardware
from recsys.sharding.settings import CommunicationSettings, Sharding
from recsys.towers.partitioner import partition_without_probe
from recsys.towers.settings import PartitionSettings
from recsys.training.settings import TrainSettings

Architecture = Literal["dcn", "dlrm"]
FLAT, FLAT_WHOLE, TRANSFORM = "flat, planner", "flat, whole tables", "transform alone"
TOWERS, NARROW, IN_TURN = "towers", "towers, half as wide", "towers, ids in turn"
GLOBAL_BATCH = 8192
TABLES, TABLE_ROWS = 26, 10_000
DIMENSION = 32
SHAPES = (Shape(2, 2), Shape(4, 2), Shape(8, 1))
RATES_MBIT: dict[Architecture, tuple[float | None, ...]] = {
    "dcn": (100, 200, 400, 800, None),
    "dlrm": (100, 200, 400, None),  # it has twice the contenders
}
# Neo's recipe, for what the flat engine exchanges and for what towers send to each other.
COMMUNICATION = CommunicationSettings(forward="fp16", backward="bf16", gradients="bf16")
SCHEMA = Schema(
    dataset="towers_speed",
    dense=[
        f"dense_{index}" for index in range(6)
    ],  # 13 columns with their missing marks and the domain
    categorical=[CategoricalFeature(f"feature_{index}", TABLE_ROWS) for index in range(TABLES)],
    domains=["all"],
    windows=[],
    initial_base_rate=0.03,
    planted_groups={},
)
# The paper's DCN and DLRM (bench/towers/dmt_table4.py) at a quarter of its width and less of its
# depth: the ratio of exchanged embeddings to dense gradients of its 16K examples per GPU stays, at
# a batch that two cores can compute.
DCN: dict[str, Any] = {
    "architecture": "dcn",
    "embedding_dimension": DIMENSION,
    "dense_layers": [64, 32],
    "cross_layers": 3,
    "cross_rank": 32,
    "over_layers": [128, 64],
}
CROSS = {"kind": "cross", "cross_layers": 2, "cross_rank": 16}
DLRM: dict[str, Any] = {
    "architecture": "dlrm",
    "embedding_dimension": DIMENSION,
    "dense_layers": [64, 32],
    "over_layers": [256, 256, 64],
}
# One layer less, as the paper's towers have it without saying so
SHORT = {"over_layers": [256, 64]}
EACH = {"kind": "dot", "vectors": 0, "vectors_per_feature": 1}
PASS = {"kind": "pass_through"}


@dataclass(frozen=True)
class Contender:
    """A way to train: ``model`` settings, and whether the engine transforms it."""

    name: str
    model: dict[str, Any]
    transformed: bool
    sharding: Sharding = "planner"
    overlap: bool = True

    def settings(self) -> ModelSettings:
        """The model's settings."""
        return ModelSettings.model_validate(self.model)

    def train(self, shape: Shape, hardware: Path) -> TrainSettings:
        """The engine's settings on the hosts of ``shape``."""
        return TrainSettings(
            world_size=shape.world_size,
            ranks_per_host=shape.ranks_per_host,
            global_batch_size=GLOBAL_BATCH,
            tower_transform=self.transformed,
            sharding=self.sharding,
            overlap=self.overlap,
            communication=COMMUNICATION,
            hardware=load_settings(hardware, Hardware),
        )

    def partition(self, hosts: int) -> Partition | None:
        """A tower a host, by stride; None where the planner is free."""
        if not self.transformed:
            return None
        return partition_without_probe(
            [feature.name for feature in SCHEMA.categorical],
            PartitionSettings(towers=hosts, strategy="stride"),
        )


def contenders(architecture: Architecture) -> list[Contender]:
    """The flat model first, then those that are compared with it."""
    if architecture == "dcn":
        towers = {"towers": True, "tower_dimension": DIMENSION}
        return [
            Contender(FLAT, DCN, False),
            Contender(FLAT_WHOLE, DCN, False, "table_wise"),
            Contender(TRANSFORM, {**DCN, **towers, "tower_module": PASS}, True),
            Contender(TOWERS, {**DCN, **towers, "tower_module": CROSS}, True),
            Contender(
                NARROW,
                {**DCN, **towers, "tower_dimension": DIMENSION // 2, "tower_module": CROSS},
                True,
            ),
            Contender(IN_TURN, {**DCN, **towers, "tower_module": CROSS}, True, overlap=False),
        ]
    found = [
        Contender(FLAT, DLRM, False),
        Contender(FLAT_WHOLE, DLRM, False, "table_wise"),
        Contender("flat, short over arch", {**DLRM, **SHORT}, False, "table_wise"),
        Contender(
            TRANSFORM,
            {**DLRM, "towers": True, "tower_dimension": DIMENSION, "tower_module": PASS},
            True,
        ),
    ]
    for ratio in (2, 4, 8):
        towers = {"towers": True, "tower_dimension": DIMENSION // ratio, "tower_module": EACH}
        found.append(Contender(f"towers, CR {ratio}", {**DLRM, **towers}, True))
    short = {
        **DLRM,
        **SHORT,
        "towers": True,
        "tower_dimension": DIMENSION // 2,
        "tower_module": EACH,
    }
    return [*found, Contender("towers, CR 2, short over arch", short, True)]
