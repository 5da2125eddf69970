"""The files that a dataset names."""

from pathlib import Path

from recsys.config import InputError


def resolve_files(patterns: list[str], root: Path) -> list[Path]:
    """The files of ``patterns`` (paths or globs, relative ones under ``root``), in the order given.

    Raises:
        InputError: a pattern matches no file.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = root / pattern
        matches = (
            [path]
            if path.is_file()
            else sorted(path.parent.glob(path.name))
            if path.parent.is_dir()
            else []
        )
        if not matches:
            raise InputError(
                f"{path}: no such file; check 'files' of the dataset and 'root', its folder"
            )
        found.extend(matches)
    return found
