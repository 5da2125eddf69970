"""A small generated stream, ingested once."""

from pathlib import Path

import pytest

from recsys.config import load_settings
from recsys.data.ingest import IngestReport, ingest
from recsys.data.settings import DatasetSettings, DataSettings, load_dataset

PARAMS = Path(__file__).resolve().parents[3] / "params"


@pytest.fixture(scope="session")
def data_settings() -> DataSettings:
    return load_settings(PARAMS / "data.yaml", DataSettings)


@pytest.fixture(scope="session")
def small_dataset(data_settings: DataSettings) -> DatasetSettings:
    dataset = load_dataset(
        data_settings.model_copy(update={"dataset": "synthetic"}), PARAMS / "datasets"
    )
    assert dataset.synthetic is not None
    small = dataset.synthetic.model_copy(update={"rows": 20_000, "windows": 4, "chunk_rows": 3_000})
    return dataset.model_copy(update={"synthetic": small})


@pytest.fixture(scope="session")
def small_stream(
    tmp_path_factory: pytest.TempPathFactory,
    data_settings: DataSettings,
    small_dataset: DatasetSettings,
) -> tuple[Path, Path, IngestReport]:
    folder = tmp_path_factory.mktemp("stream")
    settings = data_settings.model_copy(update={"rows_per_part": 2_000})
    report = ingest(settings, small_dataset, folder / "windows", folder / "oracle")
    return folder / "windows", folder / "oracle", report
