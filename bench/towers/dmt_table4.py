"""FLOPs and parameters of the DMT paper's models (arXiv 2403.00877, Tables 4 and 5) beside those of
ours.

    python -m bench.towers.dmt_table4

Every model is a Ranker made from settings, on meta tables of the paper's size, and counted by
recsys.models.cost. The paper does not print its architectures; these are the ones that its numbers
fit.
"""

from dataclasses import dataclass
from typing import Any

import torch

from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import ModelSettings
from recsys.towers.partitioner import partition_without_probe
from recsys.towers.settings import PartitionSettings

# Criteo Terabyte, no cap: facebookresearch/dlrm's list.
TABLE_ROWS = [
    *(45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10),
    *(2209, 11267, 128, 4, 974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35),
]
# Our dense input: a value and a missing mark per feature, a column per domain; the paper's is 13
# values.
SCHEMA = Schema(
    dataset="criteo_terabyte",
    dense=[f"dense_{index}" for index in range(6)],
    categorical=[
        CategoricalFeature(f"feature_{index}", rows) for index, rows in enumerate(TABLE_ROWS)
    ],
    domains=["all"],
    windows=[],
    initial_base_rate=0.03,
    planted_groups={},
)
DLRM = {"architecture": "dlrm", "embedding_dimension": 128, "dense_layers": [512, 256]}
DCN = {
    **DLRM,
    "architecture": "dcn",
    "cross_layers": 3,
    "cross_rank": 512,
    "over_layers": [1024, 1024, 512, 256],
}
FLAT_DLRM = {**DLRM, "over_layers": [1024, 1024, 512, 256]}
# The paper's towers come with one over layer of 1024 less, which it does not say.
TOWER_DLRM = {**DLRM, "over_layers": [1024, 512, 256], "towers": True}
TOWER_DCN = {**DCN, "towers": True, "tower_dimension": 128}
EACH = {"kind": "dot", "vectors": 0, "vectors_per_feature": 1}
PASS = {"kind": "pass_through"}
MIXED = {"kind": "dot", "vectors": 1, "vectors_per_feature": 0}
CROSS = {"kind": "cross", "cross_layers": 2, "cross_rank": 256, "cross_singletons": True}


@dataclass(frozen=True)
class Row:
    """A row of the paper: MFLOP a sample, G parameters (None: Table 5 has none), and our model of
    it."""

    name: str
    mflop: float
    parameters_g: float | None
    model: dict[str, Any]
    towers: int = 0


def dlrm_row(towers: int, dimension: int, mflop: float, parameters_g: float | None) -> Row:
    """A DMT-DLRM with one vector of ``dimension`` a feature."""
    model = {**TOWER_DLRM, "tower_dimension": dimension, "tower_module": EACH}
    return Row(f"{towers}T DLRM, D={dimension}", mflop, parameters_g, model, towers)


def dcn_row(towers: int, mflop: float, parameters_g: float) -> Row:
    """A DMT-DCN with one vector per tower."""
    return Row(f"{towers}T DCN", mflop, parameters_g, {**TOWER_DCN, "tower_module": CROSS}, towers)


ROWS = [
    Row("DLRM", 14.74, 22.78, FLAT_DLRM),
    *(dlrm_row(towers, 64, 8.95, 22.78) for towers in (2, 4, 8)),
    Row("16T DLRM", 8.75, 22.78, {**TOWER_DLRM, "tower_dimension": 128, "tower_module": MIXED}, 16),
    dlrm_row(26, 64, 8.95, 22.78),
    Row("DCN", 96.22, 22.79, DCN),
    dcn_row(2, 43.71, 22.81),
    dcn_row(4, 50.01, 22.79),
    dcn_row(8, 62.60, 22.81),
    dcn_row(16, 87.19, 22.79),
    Row(
        "26T DCN (transform only)",
        96.22,
        22.79,
        {**DCN, "towers": True, "tower_module": {"kind": "pass_through"}},
        26,
    ),
    dlrm_row(8, 32, 7.93, None),
    dlrm_row(8, 16, 7.41, None),
    dlrm_row(8, 8, 7.16, None),
]


def meta_ranker(model: dict[str, Any], towers: int) -> Ranker:
    """The ranker of ``model`` without memory, its features dealt to ``towers`` towers by stride."""
    names = [feature.name for feature in SCHEMA.categorical]
    partition: Partition | None = None
    if towers:
        partition = partition_without_probe(
            names, PartitionSettings(towers=towers, strategy="stride")
        )
    with torch.device("meta"):
        return build_ranker(
            SCHEMA, ModelSettings.model_validate(model), partition, seed=0, table_device="meta"
        )


def main() -> None:
    """Print the table."""
    print(
        "| model | MFLOP/sample | paper | error | G parameters | paper | error "
        "|\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for row in ROWS:
        cost = ranker_cost(meta_ranker(row.model, row.towers))
        mflop, giga = cost.flops / 1e6, cost.parameters / 1e9
        cells = [f"{mflop:.3f}", f"{row.mflop:.2f}", f"{mflop - row.mflop:+.3f}", f"{giga:.3f}"]
        paper = (
            ["", ""]
            if row.parameters_g is None
            else [f"{row.parameters_g:.2f}", f"{giga - row.parameters_g:+.3f}"]
        )
        print(f"| {row.name} | {' | '.join(cells + paper)} |")


if __name__ == "__main__":
    main()
