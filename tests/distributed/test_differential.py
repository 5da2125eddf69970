"""Differential checkpoints: with the full one before them the same bits as a full one, for every
kind, on any plan."""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchrec.distributed.model_tracker.model_delta_tracker import ModelDeltaTrackerTrec

from recsys.config import InputError
from recsys.training.checkpoints import (
    MANIFEST_FILE,
    ROWS_SUFFIX,
    DamagedCheckpointError,
    read_manifest,
)
from recsys.training.differential import TouchedRows
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import Quantisation, TrainSettings
from tests.support.engines import SEED, everything, make_engine, settings_for, share
from tests.support.files import flip_a_bit
from tests.support.launches import run_cases

STEPS = 5
FULL_EVERY = 3  # full, differential, differential, full, differential
ROWS = 5  # of a batch: most rows of a table stay as they are
TRACKED_KINDS = ("table_wise", "row_wise", "column_wise")
ROW_ERRORS: dict[Quantisation, float] = {"fp16": 2.0**-11, "int8": 1 / 255}  # of a row's span


def train_step(engine: Engine, step: int) -> None:
    # Looks rows up, changes none
    engine.predict(share(32, 100 + step, engine.rank, engine.world_size))
    engine.train_step(share(ROWS, step, engine.rank, engine.world_size), engine.serving_loss)


def differential(
    folder: Path, quantisation: Quantisation = "none", keep: int = STEPS
) -> Checkpoints:
    return Checkpoints(
        folder / "differential", "run", keep, full_every=FULL_EVERY, quantisation=quantisation
    )


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


def restore(
    settings: TrainSettings, folder: Path, quantisation: Quantisation = "none"
) -> dict[str, Tensor]:
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


# (kind, ranks) that saves, table optimiser, (kind, ranks) that reads; four ranks are two hosts.
PLANS = [
    (("table_wise", 1), "rowwise_adagrad", ("row_wise", 2)),
    (("table_wise", 2), "sgd", ("data_parallel", 2)),
    (("row_wise", 4), "rowwise_adagrad", ("table_wise", 2)),
    (("row_wise", 2), "adagrad", ("column_wise", 2)),
    (("data_parallel", 2), "rowwise_adagrad", ("row_wise", 1)),
    (("column_wise", 2), "adagrad", ("row_wise", 2)),
    (("table_row_wise", 4), "sgd", ("table_wise", 1)),
    (("table_column_wise", 4), "adagrad", ("table_wise", 1)),
    (("grid_shard", 4), "adagrad", ("data_parallel", 1)),
]


@dataclass(frozen=True)
class Restored:
    """What was saved last, and what fresh ranks read of it on the same plan and on another."""

    saved: dict[str, Tensor]
    same: dict[str, Tensor]
    other: dict[str, Tensor]
    folder: Path


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> list[Restored]:
    """By index in PLANS."""
    folders = [tmp_path_factory.mktemp("plan") for _ in PLANS]
    saving, reading = {}, {}
    for index, (source, optimizer, target) in enumerate(PLANS):
        hosts = {"ranks_per_host": 2} if source[1] == 4 else {}
        settings = settings_for(*source, table_optimizer=optimizer, **hosts)
        other = settings_for(*target, table_optimizer=optimizer)
        saving[index] = source[1], (settings, folders[index])
        reading[index, "same"] = source[1], (settings, folders[index])
        reading[index, "other"] = target[1], (other, folders[index])
    saved, read = run_cases(train_and_save, saving), run_cases(restore, reading)
    return [
        Restored(saved[index][0][-1], read[index, "same"][0], read[index, "other"][0], folder)
        for index, folder in enumerate(folders)
    ]


@pytest.mark.parametrize(
    "index", range(len(PLANS)), ids=[f"{a}{n}-{o}-{b}{m}" for (a, n), o, (b, m) in PLANS]
)
def test_restores_the_bits_of_a_full_one_on_the_same_and_on_another_plan(
    index: int, restored: list[Restored]
) -> None:
    found = restored[index]
    assert differences(found.same, found.saved) == []
    assert differences(found.other, found.saved) == []
    assert bytes_of_rows(newest(found.folder)) > 0


def test_a_run_that_goes_on_from_a_differential_one_ends_the_same(tmp_path: Path) -> None:
    settings = settings_for("table_wise", 1)
    states = run_on_ranks(train_and_save, (settings, tmp_path), 1, 1)[0]
    after = {path.name: read_manifest(path) for path in (tmp_path / "differential").iterdir()}
    for last in (4, 2, 1):  # what is left: full, differential, full
        for path in sorted((tmp_path / "differential").iterdir())[last:]:
            shutil.rmtree(path)
        again = run_on_ranks(train_and_save, (settings, tmp_path), 1, 1)[0]
        assert differences(again[-1], states[-1]) == []
        assert {
            path.name: read_manifest(path) for path in (tmp_path / "differential").iterdir()
        } == after
        assert differences(run_on_ranks(restore, (settings, tmp_path), 1, 1)[0], states[-1]) == []


def track(settings: TrainSettings) -> list[tuple[str, list[int], list[int]]]:
    """(table, TorchRec's rows, ours) on this rank, after two training steps."""
    engine = make_engine(settings)
    ours = TouchedRows(engine.module)
    collection: Any = engine.module.get_submodule("embeddings")
    record = collection.post_lookup_tracker_fn
    collection.post_lookup_tracker_fn = None
    theirs = ModelDeltaTrackerTrec(engine._model)
    second = cast(Any, collection.post_lookup_tracker_fn)
    collection.post_lookup_tracker_fn = lambda *a: (record(*a), second(*a))
    for step in range(2):
        engine.train_step(share(ROWS, step, engine.rank, engine.world_size), engine.serving_loss)
    unique = theirs.get_unique_ids()
    found = []
    for name, rows, first in ours.rows():
        [expected] = [
            ids for key, ids in unique.items() if key.endswith(name.removesuffix(".weight"))
        ] or [[]]
        found.append((name, sorted(int(i) + first for i in expected), rows.tolist()))
    return found


def test_touched_rows_are_those_of_torchrecs_tracker() -> None:
    kinds = {
        kind: (2, (settings_for(kind, 2, table_optimizer="adagrad"),)) for kind in TRACKED_KINDS
    }
    for kind, ranks in run_cases(track, kinds).items():
        for rank in ranks:
            assert rank and all(theirs == ours for _, theirs, ours in rank), kind
            assert any(ours for _, _, ours in rank), kind


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
    # The last, differential, and its full one
    assert [path.name[-1] for path in left] == ["4", "5"]


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
    assert (
        differences(run_on_ranks(restore, (settings, tmp_path), 1, 1)[0], states[goes_on_at - 1])
        == []
    )
    assert "trying the previous one" in capfd.readouterr().err


@pytest.fixture(scope="module")
def quantised(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[Quantisation, int], tuple[Any, Any]]:
    """What was saved last, and what one rank reads of it, by quantisation and number of ranks."""
    saving, reading = {}, {}
    for case in itertools.product(ROW_ERRORS, (1, 2)):
        quantisation, world_size = case
        folder = tmp_path_factory.mktemp(quantisation)
        saving[case] = world_size, (settings_for("row_wise", world_size), folder, quantisation)
        reading[case] = 1, (settings_for("table_wise", 1), folder, quantisation)
    saved, read = run_cases(train_and_save, saving), run_cases(restore, reading)
    return {case: (saved[case][0][-1], read[case][0]) for case in saving}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("quantisation", ROW_ERRORS)
def test_quantised_rows_lose_no_more_than_their_precision(
    quantisation: Quantisation,
    world_size: int,
    quantised: dict[tuple[Quantisation, int], tuple[Any, Any]],
) -> None:
    saved, read = quantised[quantisation, world_size]
    lost = differences(read, saved)
    assert lost and all("embedding_bags" in name and name.endswith(".weight") for name in lost)
    for name in lost:
        span = saved[name].abs().amax(dim=1, keepdim=True) * 2
        assert ((read[name] - saved[name]).abs() <= ROW_ERRORS[quantisation] * span).all()


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_on_ranks(train_and_save, (settings_for("table_wise", 1), tmp_path, "int8"), 1, 1)
    with pytest.raises(DamagedCheckpointError, match="not of this model"):
        run_on_ranks(
            restore, (settings_for("table_wise", 1, table_optimizer="sgd"), tmp_path, "int8"), 1, 1
        )


def test_run_with_another_name_is_refused(tmp_path: Path) -> None:
    run_on_ranks(train_and_save, (settings_for("table_wise", 1), tmp_path), 1, 1)

    def other() -> None:
        Checkpoints(tmp_path / "differential", "other", 1, full_every=FULL_EVERY).restore(
            make_engine(settings_for("table_wise", 1))
        )

    with pytest.raises(InputError, match="other data or settings"):
        run_on_ranks(other, (), 1, 1)
