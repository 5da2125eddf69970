"""Differential checkpoints: with the full one before them the same bits as a full one, for every kind, on any plan."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchrec.distributed.model_tracker.model_delta_tracker import ModelDeltaTrackerTrec

from recsys.config import InputError
from recsys.training.checkpoints import MANIFEST_FILE, ROWS_SUFFIX, DamagedCheckpointError, read_manifest
from recsys.training.differential import TouchedRows
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import Quantisation, TrainSettings
from tests.distributed.test_checkpoints import everything, flip_a_bit, make_engine, settings_for
from tests.distributed.test_engine import SEED, share

STEPS = 5
FULL_EVERY = 3  # full, differential, differential, full, differential
ROWS = 5  # of a batch: most rows of a table stay as they are


def train_step(engine: Engine, step: int) -> None:
    engine.predict(share(32, 100 + step, engine.rank, engine.world_size))  # looks rows up, changes none
    engine.train_step(share(ROWS, step, engine.rank, engine.world_size), engine.serving_loss)


def differential(folder: Path, quantisation: Quantisation = "none", keep: int = STEPS) -> Checkpoints:
    return Checkpoints(folder / "differential", "run", keep, full_every=FULL_EVERY, quantisation=quantisation)


def train_and_save(
    settings: TrainSettings, folder: Path, quantisation: Quantisation = "none", keep: int = STEPS
) -> list[dict[str, Tensor]]:
    """Train STEPS steps, a checkpoint after each; all weights and optimiser state at each."""
    engine = make_engine(settings)
    kept, states = differential(folder, quantisation, keep), []
    (folder / "differential").mkdir(exist_ok=True, parents=True)
    start = kept.restore(engine).batches
    for step in range(start, STEPS):
        train_step(engine, step)
        kept.save(engine, Position(batches=step + 1))
        states.append(everything(engine))
    return states


def restore(settings: TrainSettings, folder: Path, quantisation: Quantisation = "none") -> dict[str, Tensor]:
    engine = make_engine(settings, SEED + 1)
    differential(folder, quantisation).restore(engine)
    return everything(engine)


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def newest(folder: Path) -> Path:
    return max((folder / "differential").iterdir())


def bytes_of_rows(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob(f"*{ROWS_SUFFIX}"))


@pytest.mark.parametrize(
    ("source", "optimizer", "target"),
    [
        (("table_wise", 1), "rowwise_adagrad", ("row_wise", 2)),
        (("table_wise", 2), "sgd", ("data_parallel", 2)),
        (("row_wise", 4), "rowwise_adagrad", ("table_wise", 2)),
        (("row_wise", 2), "adagrad", ("column_wise", 2)),
        (("data_parallel", 2), "rowwise_adagrad", ("row_wise", 1)),
        (("column_wise", 2), "adagrad", ("row_wise", 2)),
        (("table_row_wise", 4), "sgd", ("table_wise", 1)),
        (("table_column_wise", 4), "adagrad", ("table_wise", 1)),
        (("grid_shard", 4), "adagrad", ("data_parallel", 1)),
    ],
)
def test_restores_the_bits_of_a_full_one_on_the_same_and_on_another_plan(
    source: tuple[str, int], optimizer: str, target: tuple[str, int], tmp_path: Path
) -> None:
    hosts = {"ranks_per_host": 2} if source[1] == 4 else {}
    settings = settings_for(*source, table_optimizer=optimizer, **hosts)
    states = run_on_ranks(train_and_save, (settings, tmp_path), source[1], 1)[0]
    other = settings_for(*target, table_optimizer=optimizer)
    assert differences(run_on_ranks(restore, (settings, tmp_path), source[1], 1)[0], states[-1]) == []
    assert differences(run_on_ranks(restore, (other, tmp_path), target[1], 1)[0], states[-1]) == []
    assert bytes_of_rows(newest(tmp_path)) > 0


def test_a_run_that_goes_on_from_a_differential_one_ends_the_same(tmp_path: Path) -> None:
    settings = settings_for("table_wise", 1)
    states = run_on_ranks(train_and_save, (settings, tmp_path), 1, 1)[0]
    after = {path.name: read_manifest(path) for path in (tmp_path / "differential").iterdir()}
    for last in (4, 2, 1):  # what is left: full, differential, full
        for path in sorted((tmp_path / "differential").iterdir())[last:]:
            shutil.rmtree(path)
        again = run_on_ranks(train_and_save, (settings, tmp_path), 1, 1)[0]
        assert differences(again[-1], states[-1]) == []
        assert {path.name: read_manifest(path) for path in (tmp_path / "differential").iterdir()} == after
        assert differences(run_on_ranks(restore, (settings, tmp_path), 1, 1)[0], states[-1]) == []


def track(settings: TrainSettings) -> list[tuple[str, list[int], list[int]]]:
    """(table, TorchRec's rows, ours) on this rank, after two training steps."""
    engine = make_engine(settings)
    ours = TouchedRows(engine.module)
    collection = engine.module.get_submodule("embeddings")
    record = collection.post_lookup_tracker_fn
    collection.post_lookup_tracker_fn = None
    theirs = ModelDeltaTrackerTrec(engine._model)
    second = collection.post_lookup_tracker_fn
    collection.post_lookup_tracker_fn = lambda *a: (record(*a), second(*a))
    for step in range(2):
        engine.train_step(share(ROWS, step, engine.rank, engine.world_size), engine.serving_loss)
    unique = theirs.get_unique_ids()
    found = []
    for name, rows, first in ours.rows():
        [expected] = [ids for key, ids in unique.items() if key.endswith(name.removesuffix(".weight"))] or [[]]
        found.append((name, sorted(int(i) + first for i in expected), rows.tolist()))
    return found


@pytest.mark.parametrize(("kind", "world_size"), [("table_wise", 2), ("row_wise", 2), ("column_wise", 2)])
def test_touched_rows_are_those_of_torchrecs_tracker(kind: str, world_size: int) -> None:
    settings = settings_for(kind, world_size, table_optimizer="adagrad")
    for rank in run_on_ranks(track, (settings,), world_size, 1):
        assert rank and all(theirs == ours for _, theirs, ours in rank)
        assert any(ours for _, _, ours in rank)


def test_only_rows_trained_on_are_written(tmp_path: Path) -> None:
    settings = settings_for("table_wise", 1)
    states = run_on_ranks(train_and_save, (settings, tmp_path), 1, 1)[0]
    [path] = sorted((tmp_path / "differential").iterdir())[1].glob(f"*{ROWS_SUFFIX}")
    written = load_file(path)
    for name, before in states[0].items():
        weight = name.removeprefix("/model/")
        if f"0|rows|{weight}" in written:
            changed = (before != states[1][name]).any(dim=1).nonzero().flatten().tolist()
            assert set(changed) <= set(written[f"0|rows|{weight}"].tolist())
            assert len(written[f"0|rows|{weight}"]) <= 3 * ROWS


def test_retention_keeps_the_full_one_that_a_kept_one_needs(tmp_path: Path) -> None:
    run_on_ranks(train_and_save, (settings_for("table_wise", 1), tmp_path, "none", 1), 1, 1)
    left = sorted((tmp_path / "differential").iterdir())
    assert [path.name[-1] for path in left] == ["4", "5"]  # the last, differential, and its full one


@pytest.mark.parametrize(
    ("damage", "goes_on_at"),
    [
        (lambda path: flip_a_bit(next(path.glob(f"*{ROWS_SUFFIX}"))), 4),
        (lambda path: next(path.glob(f"*{ROWS_SUFFIX}")).unlink(), 4),
        (lambda path: flip_a_bit(path.with_name(path.name[:-1] + "4") / "__0_0.distcp"), 3),
        (lambda path: shutil.rmtree(path.with_name(path.name[:-1] + "4")), 3),
        (lambda path: (path.with_name(path.name[:-1] + "4") / MANIFEST_FILE).write_text("{}"), 3),
    ],
)
def test_damage_falls_back_to_the_one_before(
    damage: Any, goes_on_at: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for("table_wise", 1)
    states = run_on_ranks(train_and_save, (settings, tmp_path), 1, 1)[0]
    damage(newest(tmp_path))
    capfd.readouterr()
    assert differences(run_on_ranks(restore, (settings, tmp_path), 1, 1)[0], states[goes_on_at - 1]) == []
    assert "trying the one before" in capfd.readouterr().err


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("quantisation", "error"), [("fp16", 2.0**-11), ("int8", 1 / 255)])
def test_quantised_rows_lose_no_more_than_their_precision(
    quantisation: Quantisation, error: float, world_size: int, tmp_path: Path
) -> None:
    settings = settings_for("row_wise", world_size)
    states = run_on_ranks(train_and_save, (settings, tmp_path, quantisation), world_size, 1)[0]
    other = settings_for("table_wise", 1)
    restored = run_on_ranks(restore, (other, tmp_path, quantisation), 1, 1)[0]
    lost = differences(restored, states[-1])
    assert lost and all("embedding_bags" in name and name.endswith(".weight") for name in lost)
    for name in lost:
        span = states[-1][name].abs().amax(dim=1, keepdim=True) * 2
        assert ((restored[name] - states[-1][name]).abs() <= error * span).all()


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_on_ranks(train_and_save, (settings_for("table_wise", 1), tmp_path, "int8"), 1, 1)
    with pytest.raises(DamagedCheckpointError, match="not of this model"):
        run_on_ranks(restore, (settings_for("table_wise", 1, table_optimizer="sgd"), tmp_path, "int8"), 1, 1)


def test_run_with_another_name_is_refused(tmp_path: Path) -> None:
    run_on_ranks(train_and_save, (settings_for("table_wise", 1), tmp_path), 1, 1)

    def other() -> None:
        Checkpoints(tmp_path / "differential", "other", 1, full_every=FULL_EVERY).restore(
            make_engine(settings_for("table_wise", 1))
        )

    with pytest.raises(InputError, match="other data or settings"):
        run_on_ranks(other, (), 1, 1)
