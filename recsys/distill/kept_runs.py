"""Results of earlier launches, keyed by what decides them: a student whose own settings, data and
code are unchanged is not trained again."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recsys.config import InputError
from recsys.files import SUMS_FILE, check_sums, file_hash, folder_state, link_file, write_sums


def content_of(folder: Path) -> Any:
    """What identifies the folder's contents: a stage's output contains its files' hashes."""
    sums = folder / SUMS_FILE
    return file_hash(sums) if sums.is_file() else folder_state(folder)


def take(kept_dir: Path, key: str, root: Path) -> bool:
    """Link the files kept under ``key`` to their places below ``root``; returns whether they exist
    and are complete."""
    kept = kept_dir / key
    if not (kept / SUMS_FILE).is_file():
        return False
    try:
        check_sums(kept, "")
    except InputError:  # then it is trained again
        return False
    for path in kept.rglob("*"):
        target = root / path.relative_to(kept)
        if path.is_file() and path != kept / SUMS_FILE and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            link_file(str(path), str(target))
    return True


def keep(kept_dir: Path, root: Path, paths: Mapping[str, Iterable[Path]]) -> None:
    """Keep links to the files of ``paths``, by key, each at its place below ``root``, and remove
    what other keys hold."""
    kept_dir.mkdir(parents=True, exist_ok=True)
    for old in kept_dir.iterdir():
        if old.name not in paths:
            shutil.rmtree(old)
    for key, own in paths.items():
        shutil.rmtree(kept_dir / key, ignore_errors=True)  # it may be damaged or half-written
        for top in own:
            for path in [top] if top.is_file() else sorted(top.rglob("*")):
                if path.is_file():
                    target = kept_dir / key / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_file(str(path), str(target))
        write_sums(kept_dir / key)  # last: without this the rest does not count
