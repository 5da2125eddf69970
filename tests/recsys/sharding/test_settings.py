"""What an engine could only refuse later is refused when the settings are read, in one line."""

from pathlib import Path

import pytest

from recsys.config import InputError, load_settings
from recsys.distill.teacher_checks import check_teacher
from recsys.distill.teacher_settings import TeacherSettings
from recsys.planning.hardware import CPU, GPU
from recsys.planning.tables import SHARDINGS
from recsys.training.settings import TrainSettings

COLUMN_KINDS = [kind for kind, split in SHARDINGS.items() if split.columns]
PARAMS = Path(__file__).resolve().parents[3] / "params"
REFUSED = [
    ("table_optimizer: adam", r"key 'table_optimizer': .*adam has no kernel on the CPU; there are"),
    *(
        (f"{{table_optimizer: rowwise_adagrad, sharding: {kind}}}", rf"key 'sharding': .*{kind}")
        for kind in COLUMN_KINDS
    ),
    (
        "{table_optimizer: rowwise_adagrad, table_sharding: {table_shop: column_wise}}",
        r"key 'table_sharding': .*column_wise changes .* for table_shop; use table_wise",
    ),
    (
        "{table_precision: fp16, sharding: data_parallel}",
        r"key 'table_precision': .*fp16 has no kernel for data_parallel",
    ),
    (
        "{device: cuda, table_optimizer: adam, table_sharding: {table_shop: data_parallel}}",
        r"key 'table_sharding': .*data_parallel of table_shop has no adam",
    ),
    (
        "{world_size: 4, ranks_per_host: 3}",
        r"key 'ranks_per_host': .*world_size 4 is not a multiple of it",
    ),
    ("host_memory_gb: 1", r"key 'host_memory_gb': .*is for device: cuda"),
    (
        f"{{device: cuda, hardware: {PARAMS}/hardware/cpu.yaml}}",
        r"key 'hardware': .*device cpu, and device is cuda; name the file .*cpu\.yaml",
    ),
    (
        f"{{hardware: {PARAMS}/hardware/h100.yaml}}",
        r"key 'hardware': .*device cuda, and device is cpu",
    ),
]


@pytest.mark.parametrize("text, message", REFUSED)
def test_settings_that_no_engine_takes_are_refused_where_they_are_read(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_settings(path, TrainSettings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind, split in SHARDINGS.items() if split.rows])
def test_int8_and_split_rows_are_refused_before_a_teacher_is_launched(kind: str) -> None:
    for fixed in ({"sharding": kind}, {"table_sharding": {"table_shop": kind}}):
        train = TrainSettings.model_validate({"communication": {"forward": "int8"}, **fixed})
        with pytest.raises(InputError, match=rf"'communication.forward': int8 .* with {kind} of"):
            check_teacher(TeacherSettings(), train)
        check_teacher(TeacherSettings(), train.model_copy(update={"tower_transform": True}))


def test_what_an_engine_takes_is_read() -> None:
    for kind in SHARDINGS:
        optimizer = "adagrad" if kind in COLUMN_KINDS else "rowwise_adagrad"
        assert TrainSettings(sharding=kind, table_optimizer=optimizer).sharding == kind
    assert TrainSettings(device="cuda", table_optimizer="adam").table_optimizer == "adam"


def test_the_hardware_follows_the_device() -> None:
    assert TrainSettings().hardware == CPU
    assert TrainSettings(device="cuda").hardware == GPU
    assert TrainSettings(device="cuda", host_memory_gb=2.0).hardware == GPU


def test_every_hardware_file_is_read_for_its_device() -> None:
    files = sorted((PARAMS / "hardware").glob("*.yaml"))
    assert {file.stem for file in files} >= {"cpu", "a100", "h100", "h200"}
    for file in files:
        device = "cpu" if file.stem == "cpu" else "cuda"
        assert TrainSettings.model_validate({"device": device, "hardware": file})
