"""The regression against the same in numpy, an example and a weight at a time."""

import numpy as np
import polars as pl
import pytest

from recsys.baselines.logistic import LogisticRegression
from recsys.baselines.settings import LogisticSettings
from recsys.data.loader import Batch, batch_of
from recsys.data.schema import CategoricalFeature, Schema

SCHEMA = Schema(
    dataset="toy",
    dense=["price"],
    categorical=[
        CategoricalFeature("user", 5),
        CategoricalFeature("seen", 6, "list"),
        CategoricalFeature("ad", 4),
    ],
    domains=["a", "b"],
    windows=[],
    initial_base_rate=0.25,
    planted_groups={},
    domain_base_rates=[0.2, 0.3],
)
SETTINGS = LogisticSettings(learning_rate=0.3, initial_accumulator=0.5, batch_size=4)


def examples(rows: int, seed: int) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    price = [float(x) if x > 0 else None for x in generator.normal(0.5, 1, rows)]
    return pl.DataFrame(
        {
            "example_id": np.arange(rows),
            "event_time": np.arange(rows),
            "label_time": np.arange(rows),
            "domain": generator.integers(2, size=rows),
            "group": np.arange(rows),
            "price": pl.Series(price, dtype=pl.Float32),
            "user": generator.integers(5, size=rows),
            "seen": [generator.integers(6, size=row % 3).tolist() for row in range(rows)],
            "ad": generator.integers(4, size=rows),
            "label": generator.integers(2, size=rows).astype(np.float32),
            "weight": generator.uniform(0.2, 3, size=rows).astype(np.float32),
        },
        schema_overrides={"seen": pl.List(pl.Int64)},
    )


def batch(frame: pl.DataFrame) -> Batch:
    return batch_of(frame, SCHEMA, frame["weight"].to_numpy().copy(), frame.height)


class Reference:
    """A weight per name, each with its own sum of squared gradients."""

    def __init__(self) -> None:
        self.weights = {("domain", 0): np.log(0.2 / 0.8), ("domain", 1): np.log(0.3 / 0.7)}
        self.sums: dict[tuple[str, int], float] = {}

    def inputs(self, row: dict) -> list[tuple[tuple[str, int], float]]:
        """(weight, value) of an example."""
        seen = [(("seen", one), 1 / len(row["seen"])) for one in row["seen"]]
        price = (("missing", 0), 1.0) if row["price"] is None else (("price", 0), row["price"])
        ids = [(("user", row["user"]), 1.0), (("ad", row["ad"]), 1.0)]
        return [*ids, *seen, price, (("domain", row["domain"]), 1.0)]

    def logit(self, row: dict) -> float:
        return sum(self.weights.get(name, 0.0) * value for name, value in self.inputs(row))

    def learn(self, rows: list[dict]) -> None:
        gradients: dict[tuple[str, int], float] = {}
        for row in rows:
            error = row["weight"] * (1 / (1 + np.exp(-self.logit(row))) - row["label"])
            for name, value in self.inputs(row):
                gradients[name] = gradients.get(name, 0.0) + error * value
        for name, gradient in gradients.items():
            self.sums[name] = self.sums.get(name, 0.5) + gradient**2
            step = 0.3 * gradient / np.sqrt(self.sums[name])
            self.weights[name] = self.weights.get(name, 0.0) - step


def test_it_is_adagrad_per_weight_on_gradients_summed_over_small_batches() -> None:
    model, reference = LogisticRegression(SCHEMA, SETTINGS), Reference()
    for seed, rows in enumerate((10, 8, 3)):  # of batches of 4, the last ones smaller
        frame = examples(rows, seed)
        assert model.predict(batch(frame)) == pytest.approx(
            [reference.logit(row) for row in frame.to_dicts()], abs=1e-5
        )
        model.learn(batch(frame))
        for start in range(0, rows, 4):
            reference.learn(frame[start : start + 4].to_dicts())
    frame = examples(20, 9)
    assert model.predict(batch(frame)) == pytest.approx(
        [reference.logit(row) for row in frame.to_dicts()], abs=1e-5
    )
