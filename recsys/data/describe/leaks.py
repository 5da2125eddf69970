"""How well a single column predicts the label."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.describe.columns import Column

FEWEST = 20  # fewest positives and fewest negatives for a meaningful AUC


def auc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of ``scores`` [N] against ``labels`` [N], counting ties as halves;
    0.5 if there are fewer than 20 of either label."""
    clicks = int(labels.sum())
    if min(clicks, len(labels) - clicks) < FEWEST:
        return 0.5
    ranks = pl.Series(scores).rank("average").to_numpy()
    above = float(ranks[labels].sum()) - clicks * (clicks + 1) / 2
    return above / (clicks * (len(labels) - clicks))


def single_aucs(column: Column, labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Two AUCs of a column by itself, each at least 0.5: of its values or of their being missing;
    and, for categories, of click rates counted on every other row."""
    values = column.values
    missing = values.is_null().to_numpy()
    found = [auc(missing.astype(np.float64), labels)]
    known = ~missing
    if column.kind in ("whole", "number"):
        found.append(auc(values.drop_nulls().to_numpy(), labels[known]))
    elif column.kind == "list" and values.dtype != pl.String:
        lengths = values.drop_nulls().cast(pl.List(pl.String)).list.len()
        found.append(auc(lengths.to_numpy().astype(np.float64), labels[known]))
    of_rates = 0.5
    if column.kind in ("whole", "text", "boolean") and column.distinct < len(values) / 5:
        rows = pl.DataFrame({"value": values, "label": labels})
        counted, judged = rows.gather_every(2), rows.gather_every(2, 1)
        base = float(labels.mean())
        rates = counted.group_by("value").agg(
            rate=(pl.col("label").sum() + 10 * base) / (pl.len() + 10)
        )
        scored = judged.join(rates, on="value", how="left", nulls_equal=True, maintain_order="left")
        of_rates = auc(scored["rate"].fill_null(base).to_numpy(), judged["label"].to_numpy())
    return max(max(one, 1 - one) for one in found), max(of_rates, 1 - of_rates)
