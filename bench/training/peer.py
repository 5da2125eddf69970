"""FuxiCTR (PyPI, 2.3.10): its tables, blocks, loader and training step around the same model.

Imported only with the folder of its package on the path (see bench/README.md).
"""

# The project does not install the package
# pyright: reportMissingImports=false

import logging
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.parquet_dataloader import ParquetDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from bench.training.cases import ADAM_RATE, DENSE_LAYERS, OVER_LAYERS, Case, Model
from bench.training.loop import Contest, measure, peak_gib
from recsys.data.schema import Schema, Window
from recsys.models.layers import LowRankCrossNetwork

GRADIENT_NORM = 10.0  # what BaseModel.fit clips to unless told otherwise
LABEL = "label"


class FuxiRanker(BaseModel):
    """The ranker of ``model``; the low-rank cross layers are ours, FuxiCTR has full-rank ones or
    mixtures."""

    def __init__(self, features: FeatureMap, schema: Schema, model: Model, folder: str) -> None:
        super().__init__(features, model_root=folder, metrics=["AUC"], verbose=0)
        self.numbers, names = schema.dense, [feature.name for feature in schema.categorical]
        dimension, settings = model.dimension, model.settings()
        self.embedding_layer = FeatureEmbedding(features, dimension, required_feature_columns=names)
        self.dense_arch = MLP_Block(
            len(self.numbers),
            [*DENSE_LAYERS, dimension],
            hidden_activations=["ReLU"] * len(DENSE_LAYERS) + [None],
        )
        fields = len(names) + 1
        self.dots = (
            InnerProductInteraction(fields, output="inner_product")
            if model.architecture == "dlrm"
            else None
        )
        width = fields * dimension
        self.cross = LowRankCrossNetwork(width, settings.cross_layers, settings.cross_rank)
        if self.dots is not None:
            del self.cross
            width = dimension + self.dots.interaction_units
        self.over_arch = MLP_Block(width, OVER_LAYERS, output_dim=1)
        self.compile("adam", "binary_crossentropy", ADAM_RATE)
        self.reset_parameters()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch by column name -> {"y_pred": probability [B, 1]}."""
        columns = self.get_inputs(inputs)
        dense = self.dense_arch(
            torch.stack([columns[name].float() for name in self.numbers], dim=1)
        )  # [B, N]
        ids = {name: value for name, value in columns.items() if name not in self.numbers}
        vectors = torch.cat([dense.unsqueeze(1), self.embedding_layer(ids)], dim=1)  # [B, F + 1, N]
        crossed = (
            self.cross(vectors.flatten(1))
            if self.dots is None
            else torch.cat([dense, self.dots(vectors)], 1)
        )
        return {"y_pred": self.output_activation(self.over_arch(crossed))}


def run_fuxictr(case: Case) -> dict[str, float]:
    """Train with FuxiCTR's own step: Adam on dense gradients, gradients clipped."""
    logging.disable(logging.WARNING)
    schema = Schema.load(Path(case.windows))
    with tempfile.TemporaryDirectory() as folder:
        features = _feature_map(schema, case.model, folder)
        model = FuxiRanker(features, schema, case.model, folder)
        model._max_gradient_norm = GRADIENT_NORM
        nn.Module.train(model)

        def batches(window: Window) -> Iterator[dict[str, Tensor]]:
            path = str(Path(case.windows).absolute() / window.name)
            yield from ParquetDataLoader(features, path, batch_size=case.model.batch_size)

        def losses(batches: Iterator[dict[str, Tensor]]) -> Iterator[float]:
            return (model.train_step(batch).item() for batch in batches)

        contest = Contest(schema.windows, batches, losses, case.model.batch_size)
        return {**measure(contest, case.seconds, case.least_steps), "peak_gib": peak_gib()}


def _feature_map(schema: Schema, model: Model, folder: str) -> FeatureMap:
    features = FeatureMap("bench", folder)
    numbers = {name: {"type": "numeric", "source": ""} for name in schema.dense}
    ids = {
        f.name: {"type": "categorical", "source": "", "vocab_size": f.num_embeddings}
        for f in schema.categorical
    }
    features.features = OrderedDict({**numbers, **ids})
    features.labels = [LABEL]
    features.num_fields = len(features.features)
    features.default_emb_dim = model.dimension
    return features
