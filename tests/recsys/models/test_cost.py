"""FLOPs and parameters: the DMT paper's Tables 4 and 5, row by row, by models made from
settings."""

import pytest
import torch

from bench.towers.dmt_table4 import ROWS, Row, meta_ranker
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings

# Table 4 prints 22.81 G for these two and 22.79 G for twice and half as many towers. No count of
# the dense part goes up and down like that with towers, and the FLOPs, which fit, leave 7 to 15
# million weights to it.
PAPER_PARAMETERS_IN_DOUBT = {"2T DCN": 0.03, "8T DCN": 0.03}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_of_the_papers_tables(row: Row) -> None:
    cost = ranker_cost(meta_ranker(row.model, row.towers))
    assert cost.flops / 1e6 == pytest.approx(row.mflop, abs=0.01)
    if row.parameters_g is not None:
        allowed = PAPER_PARAMETERS_IN_DOUBT.get(row.name, 0.01)
        assert cost.parameters / 1e9 == pytest.approx(row.parameters_g, abs=allowed)


def test_the_count_of_a_small_model_by_hand() -> None:
    features = [CategoricalFeature("a", 5), CategoricalFeature("b", 6)]
    schema = Schema("test", ["x"], features, ["feed"], [], 0.1, {})  # a dense input of 3
    settings = ModelSettings(embedding_dimension=4, dense_layers=[2], over_layers=[7])
    ranker = build_ranker(schema, settings, None, seed=0)
    cost = ranker_cost(ranker)
    above_the_first_layer = 2 * 4 + 3 * 3 * 4 + (4 + 3) * 7 + 7  # project, dots, over, head
    assert cost.matrix_flops == 4 * 3 * (2 + 1) + 6 * above_the_first_layer
    assert cost.cross_flops == 0
    assert cost.dense_parameters == (3 * 2 + 2) + (2 * 4 + 4) + (7 * 7 + 7) + (7 + 1) + 3
    assert cost.table_parameters == (5 + 6) * 4
    assert all(parameter.grad is None for parameter in ranker.parameters())
    assert torch.get_default_device() == torch.device("cpu")
