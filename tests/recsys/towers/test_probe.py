"""The probes on a small generated stream: planted groups, affinity by hand, the choice between
strategies."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import InputError, load_settings
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.schema import CategoricalFeature, Schema
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.models.factorization import FactorizationMachine
from recsys.models.partition_file import Partition
from recsys.towers.probe import feature_weights, learn_partition, proxy_ne
from recsys.towers.settings import PartitionSettings
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings

TRAIN = TrainSettings.model_validate({"world_size": 1, "global_batch_size": 512})
ROWS = 40_000


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream with few ids and many clicks, so that few rows are enough to show its groups."""
    folder = tmp_path_factory.mktemp("planted")
    dataset = load_settings(Path("params/datasets/synthetic.yaml"), DatasetSettings)
    assert dataset.synthetic is not None
    domains = [{"name": "feed", "share": 1.0, "base_rate": 0.4}]
    easy = {
        "rows": ROWS,
        "windows": 4,
        "users": 40,
        "ads": 40,
        "contexts": 40,
        "within_strength": 3.0,
    }
    changed = type(dataset.synthetic).model_validate(
        {**dataset.synthetic.model_dump(), **easy, "domains": domains}
    )
    data = load_settings(Path("params/data.yaml"), DataSettings)
    for name in ("windows", "oracle"):
        (folder / name).mkdir()
    ingest(
        data,
        dataset.model_copy(update={"synthetic": changed}),
        folder / "windows",
        folder / "oracle",
    )
    return folder / "windows"


def settings(**changes: Any) -> PartitionSettings:
    base: dict[str, Any] = {
        "probe_windows": 4,
        "probe": "factorization",
        "affinity_mean": "squared",
        "affinity_centred": True,
        "stretch_distances": True,
        "dimensions": 3,
        "balance_ratio": 1.0,
        "steps": 300,
        "restarts": 2,
    }
    return PartitionSettings.model_validate({**base, **changes})


def test_the_factorization_probe_recovers_planted_groups(windows: Path, tmp_path: Path) -> None:
    partition = learn_partition(windows, settings(probe_epochs=2), TRAIN, tmp_path)
    planted = Schema.load(windows).planted_groups
    tower = {name: index for index, members in enumerate(partition.towers) for name in members}
    assert adjusted_rand_score(list(planted.values()), [tower[name] for name in planted]) >= 0.9


def test_both_keeps_the_one_that_predicts_better(windows: Path, tmp_path: Path) -> None:
    chosen = settings(strategy="both", probe_windows=2)
    kept = learn_partition(windows, chosen, TRAIN, tmp_path / "both")
    nes = {}
    for name in ("coherent", "diverse"):
        one = learn_partition(
            windows, chosen.model_copy(update={"strategy": name}), TRAIN, tmp_path / name
        )
        nes[name] = run_on_ranks(proxy_ne, (windows, chosen, TRAIN, one), 1, 1)[0]
    assert kept.strategy == min(nes, key=lambda name: nes[name])
    assert 0.5 < nes[kept.strategy] < 1.1
    with pytest.raises(InputError, match="probe_windows 2"):
        run_on_ranks(
            proxy_ne, (windows, settings(probe_windows=1), TRAIN, Partition("manual", [], [])), 1, 1
        )


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("strategy", ["coherent", "spectral", "stride"])
def test_a_log_of_few_features_gets_a_tower_for_each(
    features: int, strategy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    ids = {f"id_{index}": random.integers(0, 9, 600) for index in range(features)}
    frame = pl.DataFrame(
        {"ms": 1_700_000_000_000 + np.arange(600) * 288_000, "clicked": [0, 1, 0] * 200, **ids}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    table = {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "ms", "unit": "ms"},
        "label": "clicked",
        "categorical": [{"column": name, "table_rows": 20} for name in ids],
    }
    dataset = DatasetSettings.model_validate({"format": "table", "table": table})
    data = DataSettings(root=str(tmp_path), dataset="few")
    ingest(data, dataset, tmp_path / "windows", tmp_path / "oracle")
    chosen = PartitionSettings.model_validate({"strategy": strategy, "steps": 20, "restarts": 1})
    partition = learn_partition(tmp_path / "windows", chosen, TRAIN, tmp_path / "partition")
    assert sorted(partition.towers) == [[name] for name in sorted(ids)]
    assert f"partition: {features} towers" in capfd.readouterr().err


def test_weights_of_features(windows: Path) -> None:
    reader = WindowReader(windows)
    assert set(feature_weights(reader, settings(), TRAIN)) == {1.0}
    sizes = np.array([feature.num_embeddings for feature in reader.schema.categorical])
    assert np.array_equal(feature_weights(reader, settings(balance="bytes"), TRAIN), sizes * 16 * 4)
    # One id an example
    assert set(feature_weights(reader, settings(balance="lookup_cost"), TRAIN)) == {16 * 4}


def test_a_factorization_machine_by_hand() -> None:
    features = [CategoricalFeature(name, 3) for name in "ab"]
    machine = FactorizationMachine(Schema("test", ["x"], features, ["feed"], [], 0.1, {}), 4)
    tables = [torch.randn(3, 4), torch.randn(3, 4)]
    with torch.no_grad():
        for name, table in zip("ab", tables, strict=True):
            machine.embeddings.get_parameter(f"embedding_bags.table_{name}.weight").copy_(table)
        machine.linear.weight.fill_(0.5)
    sparse = KeyedJaggedTensor(["a", "b"], torch.tensor([2, 1]), lengths=torch.tensor([1, 1]))
    a, b = tables[0][2], tables[1][1]
    expected = 0.5 * 3 + machine.linear.bias.item() + a[0] + b[0] + a[1:] @ b[1:]
    torch.testing.assert_close(machine(torch.ones(1, 3), sparse)["serving"][0], expected)
    torch.testing.assert_close(machine.embed(sparse)[0], torch.stack([a[1:], b[1:]]))
