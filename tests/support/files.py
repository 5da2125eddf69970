"""What a folder holds, and damage to a file."""

import hashlib
from pathlib import Path


def flip_a_bit(path: Path) -> None:
    """In the middle of a file."""
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def digests(folder: Path) -> dict[str, str]:
    """The hash of each file, by its path in ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file, by its path in ``folder``."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
