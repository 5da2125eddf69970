"""Logs behind URLs, copied before they are read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from recsys.config import InputError
from recsys.files import UnreachableError, in_one_line
from recsys.progress import RowProgress

LASTING = (FileNotFoundError, PermissionError, ValueError)  # another try would not help
# What pip installs for each kind of URL; fsspec's own messages name modules
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hdfs": "hdfs"}


def fetched(url: str, folder: Path) -> list[Path]:
    """Copies in ``folder`` of the files behind ``url``, which may be a glob, in no order.

    A copy's path ends in the file's own, so the folders that it lay in are seen. What a killed call
    has fetched is not fetched again, unless the file has changed since.

    Raises:
        InputError: there is no such file, nobody may read it, or what reads such URLs is not
            installed.
        UnreachableError: the store does not answer.
    """
    with _asked(url):
        system, names = _listed(url)
        RowProgress("fetch", 0).note(f"{len(names):,} files of {url}")
        found: list[Path] = []
        for name in names:
            copy = folder / url.split("://")[0] / name.lstrip("/")
            _fetch(system, name, copy)
            found.append(copy)
        return found


def states(url: str) -> list[tuple[str, str]]:
    """Name and state of each file behind ``url``, without fetching it; the state of a file is
    another once the file is.

    Raises:
        InputError, UnreachableError: as :func:`fetched`.
    """
    with _asked(url):
        system, names = _listed(url)
        return [(name, str(system.ukey(name))) for name in sorted(names)]


def _listed(url: str) -> tuple[Any, list[str]]:
    """The file system of a URL, and the names of its files."""
    system, path = _system(url)
    system.invalidate_cache()  # or a store that is asked again lists what it had
    names = [
        name
        for name in (system.glob(path) if any(mark in path for mark in "*?[") else [path])
        if system.isfile(name)
    ]
    if not names:
        what = "is a folder; give its files" if system.isdir(path) else "no such file"
        raise InputError(f"{url}: {what}, for example {url.rstrip('/')}/**/*.parquet")
    return system, names


@contextlib.contextmanager
def _asked(url: str) -> Iterator[None]:
    """Makes a store's own errors those of a log."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each store has its own
        kind = InputError if isinstance(error, LASTING) else UnreachableError
        raise kind(f"{url}: cannot be fetched: {in_one_line(error)[:300]}") from error


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    protocol = url.split("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(protocol)
        hint = f"pip install 'towerflow[{extra}]'" if extra else "see fsspec for kinds of URLs"
        raise InputError(f"{url}: {' '.join(str(error).split())}; {hint}") from error


def _fetch(system: Any, name: str, copy: Path) -> None:
    mark = copy.with_name(f"{copy.name}.fetched")
    state = str(system.ukey(name))
    if copy.is_file() and mark.is_file() and mark.read_text() == state:
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f"{copy.name}.partial")
    with contextlib.ExitStack() as failed:
        failed.callback(partial.unlink, missing_ok=True)
        system.get_file(name, str(partial))
        partial.rename(copy)
    mark.write_text(state)
