"""Copy logs behind URLs before reading them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from recsys.config import InputError
from recsys.files import UnreachableError, in_one_line
from recsys.progress import RowProgress

LASTING = (FileNotFoundError, PermissionError, ValueError)  # another try would not help
# The package to install for each kind of URL; fsspec's own messages name modules
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hdfs": "hdfs"}


def fetched(url: str, folder: Path) -> list[Path]:
    """Copies in ``folder`` of the files behind ``url``, which may be a glob, in no particular
    order.

    A copy's path ends in the file's original path, so its folders remain visible. Files that a
    killed call has copied are not copied again unless they have changed since.

    Raises:
        InputError: the file does not exist or may not be read, or the package for such URLs is not
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
    """Name and state of each file behind ``url``, without copying it; the state changes when the
    file does.

    Raises:
        InputError, UnreachableError: as :func:`fetched`.
    """
    with _asked(url):
        system, names = _listed(url)
        return [(name, str(system.ukey(name))) for name in sorted(names)]


def _listed(url: str) -> tuple[Any, list[str]]:
    """The file system of a URL, and the names of its files."""
    system, path = _system(url)
    system.invalidate_cache()  # else a repeated listing may be stale
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
    """Turn a store's own errors into errors about the log."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each store has its own errors
        kind = InputError if isinstance(error, LASTING) else UnreachableError
        raise kind(f"{url}: cannot be fetched: {in_one_line(error)[:300]}") from error


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path within it."""
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
