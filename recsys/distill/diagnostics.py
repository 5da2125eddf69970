"""How distillation affects a student, window by window: its gradient against the label's, clipping,
calibration."""

from typing import Any

import torch
from torch import Tensor

from recsys.data.loader import Batch
from recsys.distill.heads import DISTILLATION, DistilledRanker
from recsys.distill.losses import DistillationLoss, is_usable
from recsys.models.ranker import SERVING
from recsys.sharding.communication import mean_over_ranks
from recsys.training import ranks
from recsys.training.engine import Engine

# Prefixes of a ranker's parameters
TABLES_PREFIX, HEAD_PREFIXES = ("embeddings.", ("output.", "further_output."))


class DistillationDiagnostics:
    """How a distilled student's two losses affect it, window by window.

    ``missing_scores`` and ``clip_rate`` over all examples of a window; and on its middle batch,
    after training:

    - ``gradient_ratio``: norm of the distillation loss's gradient in the backbone over the serving
        loss's;
    - ``gradient_cosine``: cosine between the two. The backbone is the dense part below the heads,
      and the pooled embeddings;
    - ``serving_calibration``, ``distillation_calibration``: mean prediction over mean target of
        each head.

    Scores, clipping and calibration cover the main task, gradients all tasks. The diagnostics cost
    one forward and two backward passes per window, which update nothing, and one more read of its
    labels.
    """

    def __init__(self, loss: DistillationLoss) -> None:
        self._loss = loss

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """``rows``, ``scored`` (usable scores) and ``clipped`` (targets cut at 1) of this rank's
        share."""
        real = batch.weight > 0
        scored = is_usable(batch, self._loss.settings) & real
        clipped = scored & (self._loss.settings.label_scale * torch.sigmoid(batch.score) > 1.0)
        counts = {"rows": real, "scored": scored, "clipped": clipped}
        return {name: mask.sum() for name, mask in counts.items()}

    def summary(
        self, engine: Engine, counts: dict[str, float], probe: Batch | None
    ) -> dict[str, Any]:
        """The window's diagnostics; None for those that are undefined."""
        found: dict[str, Any] = {}
        if self._loss.settings.reads_scores:
            found["missing_scores"] = _ratio(
                counts.get("rows", 0) - counts.get("scored", 0), counts.get("rows", 0)
            )
            found["clip_rate"] = _ratio(counts.get("clipped", 0), counts.get("scored", 0))
        return found | ({} if probe is None else self._probe(engine, engine.on_device(probe)))

    def _probe(self, engine: Engine, batch: Batch) -> dict[str, Any]:
        model = engine.module
        assert isinstance(model, DistilledRanker)
        model.eval()
        with torch.no_grad():
            embeddings = model.ranker.embed(batch.sparse)  # [B, F, N]
            of_peer = model.of_peer(batch.dense, batch.sparse)
        embeddings.requires_grad_()
        outputs = model.heads(model.ranker.represent_embedded(batch.dense, embeddings)) | of_peer
        weight = batch.weight / batch.global_rows
        terms = [
            (weight * term(outputs, batch)).sum()
            for term in (self._loss.serving, self._loss.distillation)
        ]
        own, both, other = _gradient_products(terms[0], terms[1], model, embeddings)
        trust = self._loss.trust(batch) * batch.weight
        known = torch.where(torch.isnan(batch.label), 0.0, batch.weight)
        heads = [
            (known * torch.sigmoid(outputs[SERVING])).sum(),
            (known * batch.label.nan_to_num()).sum(),
            (trust * torch.sigmoid(outputs[DISTILLATION])).sum(),
            (trust * self._loss.target(outputs, batch)).sum(),
        ]
        sums = ranks.means([value.item() for value in heads])
        return {
            "gradient_ratio": _ratio(other**0.5, own**0.5),
            "gradient_cosine": _ratio(both, (own * other) ** 0.5),
            "serving_calibration": _ratio(sums[0], sums[1]),
            "distillation_calibration": _ratio(sums[2], sums[3]),
        }


def _gradient_products(
    serving: Tensor, distillation: Tensor, model: DistilledRanker, embeddings: Tensor
) -> tuple[float, float, float]:
    """Dot products of the two losses' gradients in the backbone: serving with itself, with each
    other, distillation with itself; losses are sums over ranks."""
    dense = [
        parameter
        for name, parameter in model.ranker.named_parameters()
        if not name.startswith((TABLES_PREFIX, *HEAD_PREFIXES))
    ]
    # Per loss: the dense part's gradient over all ranks, and this rank's own for its examples
    flat, rows = ([], [])
    for loss in (serving, distillation):
        *parameters, pooled = torch.autograd.grad(
            loss, [*dense, embeddings], retain_graph=True, materialize_grads=True
        )
        flat.append(
            mean_over_ranks(torch.cat([g.flatten() for g in parameters])) * ranks.world_size()
        )
        rows.append(pooled.flatten())
    pairs = ((0, 0), (0, 1), (1, 1))
    local = ranks.means([(rows[a] @ rows[b]).item() for a, b in pairs])
    own, both, other = (
        (flat[a] @ flat[b]).item() + ranks.world_size() * mean
        for (a, b), mean in zip(pairs, local, strict=True)
    )
    return own, both, other


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
