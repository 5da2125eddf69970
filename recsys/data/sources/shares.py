"""A log cut into shares that any process can read, independently of the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.data.sources.files import short_names
from recsys.data.sources.reading import Tables
from recsys.files import fingerprint

SHARES_PER_TASK = 4  # so that tasks end at about the same time


@dataclass(frozen=True)
class Share:
    """Rows of a log that are read one after the other.

    Attributes:
        name: says which rows, for people.
        folder: where its rows are left; the name stands for the log, its settings and the code.
        tables: its files.
        file_names: how bad rows name each of them.
        alone: whether it is the entire log, so that it shows its own progress.
        zeros: tasks whose labels hold a 0 in another share.
    """

    name: str
    folder: Path
    tables: Tables
    file_names: list[str]
    alone: bool
    zeros: frozenset[str] = frozenset()


# (read, shares, done): calls read(share) for each share, in any order and any process, and then
# done(rows) with the result
ReadShares = Callable[[Callable[[Share], int], Sequence[Share], Callable[[int], None]], None]


def one_after_another(
    read: Callable[[Share], int], shares: Sequence[Share], done: Callable[[int], None]
) -> None:
    """Read the shares in this process."""
    for share in shares:
        done(read(share))


def shares_of(tables: Tables, tasks: int, folder: Path, mark: str) -> list[Share]:
    """Cut a log at its files, and at the row groups of Parquet, into shares of similar size: about
    four per task, or one share if there is one task.

    Args:
        folder: parent of the shares' folders.
        mark: stands for all that decides what is left there.

    Raises:
        InputError: a file cannot be read.
    """
    starts = [(0, 0)]
    if tasks > 1:
        pieces = tables.pieces()
        size = sum(piece.size for piece in pieces) / (tasks * SHARES_PER_TASK)
        filled = 0
        for piece in pieces:
            if filled and filled >= size:
                starts.append(piece.start)
                filled = 0
            filled += piece.size
    ends = [*starts[1:], (len(tables.files), 0)]
    names = short_names(tables.files)
    shares: list[Share] = []
    for start, end in zip(starts, ends, strict=True):
        part = tables.part(start, end)
        name = names[start[0]] + (f" from row {start[1]:,}" if start[1] else "")
        if len(part.files) > 1:
            name = f"{len(part.files):,} files from {name}"
        shares.append(
            Share(
                name,
                folder / f"share-{fingerprint(mark, start, end)}",
                part,
                names[start[0] :][: len(part.files)],
                len(starts) == 1,
            )
        )
    return shares
