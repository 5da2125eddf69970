"""Checkpoints: whole or refused, the same bits on another plan or number of ranks; lost ranks."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.training.checkpoints import MANIFEST_FILE, DamagedCheckpointError
from recsys.training.launch import RankKilledError, run_on_ranks
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import TrainSettings
from tests.support.engines import (
    SEED,
    STEPS,
    everything,
    make_engine,
    settings_for,
    train_steps,
)
from tests.support.files import flip_a_bit
from tests.support.launches import run_cases


def train_and_save(settings: TrainSettings, directory: Path) -> dict[str, Tensor]:
    engine = make_engine(settings)
    train_steps(engine, 0, 3)
    engine.save(directory)
    return everything(engine)


def load_other(settings: TrainSettings, directory: Path) -> dict[str, Tensor]:
    engine = make_engine(settings, SEED + 1)
    engine.load(directory)
    return everything(engine)


# (kind, ranks) that saves, and those that read.
PLANS = {
    ("table_wise", 2): [("row_wise", 2), ("table_wise", 1)],
    ("data_parallel", 2): [("table_wise", 2), ("row_wise", 1)],
    ("row_wise", 4): [("row_wise", 3), ("data_parallel", 2)],
}


@pytest.fixture(scope="module")
def resharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What each of PLANS saved, and what fresh ranks of each (source, target) read."""
    folders = {source: tmp_path_factory.mktemp("saved") / "saved" for source in PLANS}
    saving = {
        source: (source[1], (settings_for(*source), folder)) for source, folder in folders.items()
    }
    reading = {
        (source, target): (target[1], (settings_for(*target), folders[source]))
        for source, targets in PLANS.items()
        for target in targets
    }
    return run_cases(train_and_save, saving), run_cases(load_other, reading)


@pytest.mark.parametrize("source", PLANS, ids=lambda plan: f"{plan[0]}{plan[1]}")
def test_another_plan_or_world_size_reads_the_same_bits(
    source: tuple[str, int], resharded: tuple[dict[Any, Any], dict[Any, Any]]
) -> None:
    saved = resharded[0][source][0]
    assert any("momentum" in name for name in saved) and any("exp_avg" in name for name in saved)
    for target in PLANS[source]:
        loaded = resharded[1][source, target][0]
        assert loaded.keys() == saved.keys()
        assert [name for name, value in saved.items() if not torch.equal(value, loaded[name])] == []


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    settings = settings_for("row_wise", 2)
    for name in ("a", "b"):
        run_on_ranks(train_and_save, (settings, tmp_path / name / "saved"), 2, 1)
    files = sorted(
        path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()
    )
    assert len(files) == 4  # two ranks, .metadata, manifest; nothing partial
    assert all(
        (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
        for path in files
    )


def load_damaged(settings: TrainSettings, folder: Path) -> dict[str, str]:
    """Damage a checkpoint in every way, on one rank: the message of each."""
    messages = {}
    damages = {
        "flipped": lambda path: flip_a_bit(path / "__0_0.distcp"),
        "missing": lambda path: (path / "__0_0.distcp").unlink(),
        "no metadata": lambda path: (path / ".metadata").unlink(),
        "no manifest": lambda path: (path / MANIFEST_FILE).unlink(),
        "broken manifest": lambda path: (path / MANIFEST_FILE).write_text("{"),
        "no folder": lambda path: path.rename(path.with_name("elsewhere")),
    }
    engine = make_engine(settings)
    for name, damage in damages.items():
        path = folder / name
        engine.save(path)
        engine.load(path)
        damage(path)
        with pytest.raises(DamagedCheckpointError) as caught:
            engine.load(path)
        messages[name] = str(caught.value)
    return messages


def test_damage_is_one_clear_error(tmp_path: Path) -> None:
    messages = run_on_ranks(load_damaged, (settings_for("table_wise", 1), tmp_path), 1, 1)[0]
    assert all("\n" not in message and str(tmp_path) in message for message in messages.values())
    assert "SHA-256" in messages["flipped"] and "missing" in messages["missing"]
    assert "manifest.json" in messages["no manifest"]


def test_checkpoint_of_another_model_is_refused_on_every_rank(tmp_path: Path) -> None:
    run_on_ranks(train_and_save, (settings_for("table_wise", 1), tmp_path / "saved"), 1, 1)
    other = settings_for("table_wise", 2, table_optimizer="adagrad")
    with pytest.raises(DamagedCheckpointError, match="not of this model"):
        run_on_ranks(load_other, (other, tmp_path / "saved"), 2, 1)


def train_with_checkpoints(
    settings: TrainSettings, folder: Path, kill_rank: int | None, after: int
) -> dict[str, Tensor]:
    """Train STEPS steps, a checkpoint after each; once, ``kill_rank`` kills itself after step
    ``after``."""
    engine = make_engine(settings)
    checkpoints = Checkpoints(folder / "checkpoints", "run", keep=2, every_batches=1)
    start = checkpoints.restore(engine)
    for step in range(start.batches, STEPS):
        train_steps(engine, step, step + 1)
        torch.rand(())  # the random state is part of a checkpoint
        killed = folder / "killed"
        if engine.rank == kill_rank and step == after and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoints.save(engine, Position(batches=step + 1))
    return everything(engine) | {"random": torch.get_rng_state()}


def test_group_restarts_after_a_killed_rank_and_ends_the_same(tmp_path: Path) -> None:
    settings = settings_for("row_wise", 2)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for folder in (calm, killed):
        (folder / "checkpoints").mkdir(parents=True)
    expected = run_on_ranks(train_with_checkpoints, (settings, calm, None, 0), 2, 1)[0]
    state = run_on_ranks(train_with_checkpoints, (settings, killed, 1, 3), 2, 1, max_restarts=1)[0]
    assert (killed / "killed").exists()
    assert [name for name, value in expected.items() if not torch.equal(value, state[name])] == []
    assert len(list((killed / "checkpoints").iterdir())) == 2


def test_killed_rank_ends_the_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    started = time.monotonic()
    with pytest.raises(RankKilledError, match="rank 1 was killed by SIGKILL"):
        run_on_ranks(train_with_checkpoints, (settings_for("row_wise", 2), tmp_path, 1, 2), 2, 1)
    assert time.monotonic() - started < 30


def damage_newest(settings: TrainSettings, folder: Path) -> int:
    engine = make_engine(settings)
    checkpoints = Checkpoints(folder, "run", keep=2)
    for batches in (1, 2):
        checkpoints.save(engine, Position(batches=batches))
    flip_a_bit(max(folder.iterdir()) / "__0_0.distcp")
    return checkpoints.restore(engine).batches


def test_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_on_ranks(damage_newest, (settings_for("table_wise", 1), tmp_path), 1, 1) == [1]
    assert "SHA-256" in capfd.readouterr().err
