"""The network above the tables, as ONNX."""

import io
import warnings

import torch
from torch import Tensor, nn

from recsys.models.ranker import Ranker
from recsys.models.slices import are_whole
from recsys.serving.export_format import (
    COUNTS_INPUT,
    DENSE_INPUT,
    EMBEDDINGS_INPUT,
    LOGITS_OUTPUT,
)

OPSET = 17
SAMPLES = 2


class Network(nn.Module):
    """[B, W], [B, C, N] and, with sequences, [B, S] -> logits [B, T].

    C is the number of look-ups: one per feature, L per sequence. S is the number of sequences;
    their input is the number of ids per example.
    """

    places: Tensor
    kept: Tensor

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker
        self.sequence_names = list(ranker.sequences.sequences)
        self.cut = not are_whole(ranker.pieces)
        width = ranker.embedding_dimension
        kept = torch.zeros(len(ranker.pieces), width)
        for place, piece in enumerate(ranker.pieces):
            kept[place, list(piece.columns(width))] = 1.0
        places = [ranker.feature_names.index(piece.feature) for piece in ranker.pieces]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("kept", kept, persistent=False)

    @property
    def columns(self) -> list[str]:
        """Names of the look-ups, in the order of the input."""
        return self.ranker.sequences.columns(self.ranker.feature_names)

    def forward(self, dense: Tensor, embeddings: Tensor, *counts: Tensor) -> Tensor:
        """Logits [B, T]; see the class."""
        if self.cut:  # a slice is its feature's embedding with zeros in the other columns
            embeddings = embeddings[:, self.places] * self.kept
        elif self.sequence_names:
            by_name = dict(zip(self.sequence_names, counts[0].unbind(1), strict=True))
            embeddings = self.ranker.sequences.pooled(
                embeddings, self.ranker.feature_names, by_name
            )
        logits = self.ranker.heads(self.ranker.represent_embedded(dense, embeddings))
        return torch.stack(list(logits.values()), dim=1)


@torch.no_grad()
def onnx_of(network: Network) -> bytes:
    """The network as an ONNX model with its weights, for any number of rows."""
    ranker = network.ranker
    inputs = [
        torch.zeros(SAMPLES, ranker.dense_width),
        torch.zeros(SAMPLES, len(network.columns), ranker.embedding_dimension),
    ]
    names = [DENSE_INPUT, EMBEDDINGS_INPUT]
    if network.sequence_names:
        inputs.append(torch.ones(SAMPLES, len(network.sequence_names), dtype=torch.int64))
        names.append(COUNTS_INPUT)
    written, fast = io.BytesIO(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernel is not a matrix product
    try:
        with warnings.catch_warnings(action="ignore"):  # about constant shapes, and about its age
            # The tracing exporter; the newer one needs onnxscript
            torch.onnx.export(
                network.eval(),
                tuple(inputs),
                written,  # type: ignore[arg-type]  # its stub knows of paths alone
                input_names=names,
                output_names=[LOGITS_OUTPUT],
                dynamic_axes={name: {0: "rows"} for name in [*names, LOGITS_OUTPUT]},
                opset_version=OPSET,
                dynamo=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return written.getvalue()
