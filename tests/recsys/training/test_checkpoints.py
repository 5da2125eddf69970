"""A checkpoint folder is published by renaming it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from recsys.files import PARTIAL_SUFFIX
from recsys.training.checkpoints import read_manifest, save_checkpoint
from recsys.training.launch import run_on_ranks


class LookWhenRead(Mapping[str, int]):
    """Facts that write down, when the manifest is made of them, what lies beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, int] = {}

    def __getitem__(self, key: str) -> int:
        return 3

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        self.seen = {path.name: path.stat().st_ino for path in self.folder.parent.iterdir()}
        return iter(["step"])


def test_a_checkpoint_appears_by_a_rename_and_not_before_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "000001"
    facts = LookWhenRead(folder)
    run_on_ranks(save_checkpoint, ({"weight": torch.arange(7.0)}, folder, facts), 1, 1)
    assert list(facts.seen) == [folder.name + PARTIAL_SUFFIX]
    assert folder.stat().st_ino == facts.seen[folder.name + PARTIAL_SUFFIX]
    assert read_manifest(folder)["facts"] == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
