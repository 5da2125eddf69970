"""The files that a data set names, in order, and bounded reading of text files."""

import glob
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from recsys.config import InputError

# By first bytes, which are more reliable than names
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 16 << 20
SHOWN_CHARACTERS = 160
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
URL = "://"


def resolve_files(patterns: list[str], root: Path | str, folder: Path | None = None) -> list[Path]:
    """The files that match ``patterns`` (paths or globs, including ``**``; relative ones are under
    ``root``).

    They come in the order of the patterns and, within a pattern, in natural order: numbers in names
    sort as numbers.

    Args:
        folder: holds copies of files behind URLs (see :func:`recsys.data.sources.remote.fetched`);
            ``root`` may be a URL too. None: URLs are refused.

    Raises:
        InputError: a pattern matches no file, or two match the same one.
    """
    found: list[Path] = []
    for pattern in patterns:
        url = url_of(pattern, root)
        matches = _fetched(url, folder) if URL in url else _matches(pattern, Path(root))
        twice = next((match for match in matches if match in found), None)
        if twice is not None:
            raise InputError(f"{twice}: matched twice by 'files'; its rows would count twice")
        found.extend(sorted(matches, key=natural_key))
    return found


def url_of(pattern: str, root: Path | str) -> str:
    """The path or URL of ``pattern``, relative to ``root`` unless it is a URL itself."""
    return pattern if URL in pattern else f"{str(root).rstrip('/')}/{pattern}"


def _fetched(url: str, folder: Path | None) -> list[Path]:
    if folder is None:
        raise InputError(f"{url}: URLs are not read here; fetch the files and give their paths")
    from recsys.data.sources.remote import fetched  # fsspec is seldom needed

    return fetched(url, folder)


def _matches(pattern: str, root: Path) -> list[Path]:
    path = root / pattern
    # pathlib's own glob finds no files for a ** at the end
    names = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207
    globbed = [root / name for name in names]
    matches = [path] if path.is_file() else [match for match in globbed if match.is_file()]
    if globbed and not matches:
        raise InputError(f"{path}: is a folder; give its files, for example {pattern}/**/*.csv")
    if not matches:
        raise InputError(f"{path}: no such file; check 'files' and 'root', its folder")
    return matches


def hive_keys(path: Path) -> dict[str, str | None]:
    """The keys and values in a path's folders called ``key=value``, as Hive and Spark write them.

    Example::

        hive_keys(Path("logs/date=2024-01-01/hour=03/part-0.parquet"))
        # {"date": "2024-01-01", "hour": "03"}
    """
    pairs = [part.partition("=") for part in path.parent.parts]
    return {
        key: None if value == HIVE_NULL else unquote(value)
        for key, equals, value in pairs
        if key and equals
    }


def of_name(path: Path, expression: str, column: str) -> str:
    """The text that a regular expression's group matches in a file's path.

    Raises:
        InputError: there is no match; the message names the ``column`` that needs it.
    """
    match = re.search(expression, path.as_posix())
    if match is None or match[1] is None:
        raise InputError(f"{path}: file_columns.{column}: {expression!r} does not match this path")
    return match[1]


def natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    """Sorts day_2 before day_10."""
    pieces = [re.split(r"(\d+)", part) for part in path.parts]
    return [[int(p) if p.isdecimal() else p for p in one] for one in pieces], str(path)


def order_shown(files: Sequence[Path]) -> str:
    """One line with the files in order, shortened in the middle."""
    names = short_names(files)
    if len(names) > 2 and len(", ".join(names)) > SHOWN_CHARACTERS:
        names = [*names[:3], "...", *names[-2:]]
    count = f"{len(files):,} file{'s, in this order' if len(files) > 1 else ''}"
    return f"{count}: {', '.join(names)}"


def short_names(files: Sequence[Path]) -> list[str]:
    """The files' paths relative to their common folder."""
    if not files:
        return []
    common = os.path.commonpath([file.parent for file in files])
    return [os.path.relpath(file, common) for file in files]


def compression(path: Path) -> str | None:
    """gzip, zstd or None, by the first bytes or, if these are unknown, by the suffix.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    found = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    return found or SUFFIXES.get(path.suffix)


def blocks(path: Path) -> Iterator[bytes]:
    """The contents of a file, plain or compressed with gzip or zstd.

    Raises:
        InputError: it cannot be read, or its compressed data are incomplete.
    """
    kind = compression(path)
    try:
        with _opened(path, kind) as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: truncated or corrupt gzip: {error}; fetch it again") from error
    except OSError as error:  # Arrow's too
        if kind is not None:
            raise InputError(f"{path}: truncated or corrupt {kind}: {error}") from error
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _opened(path: Path, kind: str | None) -> Any:
    """A context with ``read``; Python's gzip, since it verifies checksums."""
    if kind == "zstd":
        return pa.input_stream(str(path), compression=kind)
    return gzip.open(path, "rb") if kind == "gzip" else path.open("rb")


def line_blocks(path: Path) -> Iterator[bytes]:
    """The lines of a file (see :func:`blocks`), about a block at a time; each line ends in a
    newline.

    Raises:
        InputError: as :func:`blocks`, or a line is longer than 16 MiB, which cannot be a line of a
            log.
    """
    rest = b""
    for block in blocks(path):
        last = block.rfind(b"\n") + 1
        if last:
            yield rest + block[:last]
            rest = block[last:]
        else:
            rest += block
        _check_length(path, len(rest))
    if rest:
        yield rest + b"\n"


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without newlines; see :func:`line_blocks`."""
    for block in line_blocks(path):
        yield from block[:-1].split(b"\n")


@contextmanager
def uncompressed(path: Path, folder: Path) -> Iterator[Path]:
    """``path``, or a temporary file in ``folder`` with its contents if it is compressed.

    Raises:
        InputError: see :func:`lines`.
    """
    if compression(path) is None:
        yield path
        return
    with NamedTemporaryFile(suffix=path.stem, dir=folder) as file:
        length = 0
        for block in blocks(path):
            last = block.rfind(b"\n")
            length = length + len(block) if last < 0 else len(block) - last
            _check_length(path, length)
            file.write(block)
        file.flush()
        yield Path(file.name)


def _check_length(path: Path, length: int) -> None:
    if length > LONGEST_LINE_BYTES:
        raise InputError(
            f"{path}: a line is longer than {LONGEST_LINE_BYTES >> 20} MiB; this is not a log of "
            f"text lines"
        )
