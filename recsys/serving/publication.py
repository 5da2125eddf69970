"""Publish a model that keeps training: the rows that changed since the last version, and the whole
model for servers that missed a version.

A publication folder contains current.json, full-<n> (the newest export), and delta-<k> for the last
versions k. A delta contains rows.safetensors with the changed table rows, the network and other
small files, delta.json with the hashes of the models before and after it, and sums.json.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.encoder_format import COUNTERS_FILE, ENCODER_FILE
from recsys.files import (
    PARTIAL_SUFFIX,
    SUMS_FILE,
    check_sums,
    damaged,
    file_hash,
    link_file,
    link_files,
    read_json,
    write_atomically,
    write_json,
    write_sums,
)
from recsys.serving.export_format import (
    CALIBRATION_FILE,
    CARD_FILE,
    MODEL_FILE,
    NETWORK_FILE,
    ROWS,
    SCALES,
    TABLES,
    WEIGHTS_FILE,
)
from recsys.serving.tables import Tables, read_array

CURRENT_FILE, DELTA_FILE, ROWS_FILE = "current.json", "delta.json", "rows.safetensors"
KEPT_DELTAS = 24  # a server that falls further behind takes the whole model
LARGEST_SHARE = 0.5  # of all rows; a larger delta is not worth it
ROWS_AT_ONCE = 1 << 18
REMEDY = "towerflow stream"


@dataclass(frozen=True)
class Published:
    """A version of a publication folder.

    Attributes:
        version: number of the version, from 1.
        model: the model's hash; see :func:`model_hash`.
        rows: number of table rows that changed since the previous version; None: there is no delta.
    """

    version: int
    model: str
    rows: int | None = None


@dataclass(frozen=True)
class Delta:
    """What turns the model ``base`` into ``model``: table rows [K], their stored values [K, N] and,
    for int8, scales [K]; the folder has the rest."""

    base: str
    model: str
    folder: Path
    rows: NDArray[np.int64]
    values: NDArray[Any]
    scales: NDArray[np.float32] | None


def model_hash(export: Path) -> str:
    """A name for what an export predicts: SHA-256 over its files' checksums, without the card."""
    sums = {name: one for name, one in read_json(export / SUMS_FILE).items() if name != CARD_FILE}
    return hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()


def full_folder(folder: Path, version: int) -> Path:
    """The folder with the whole model of a version."""
    return folder / f"full-{version}"


def delta_folder(folder: Path, version: int) -> Path:
    """The folder with the delta from the previous version."""
    return folder / f"delta-{version}"


def current(folder: Path) -> Published | None:
    """The newest version in ``folder``; None if nothing is published yet.

    Raises:
        InputError: current.json is damaged.
    """
    path = folder / CURRENT_FILE
    if not path.is_file():
        return None
    try:
        return Published(**read_json(path))
    except (InputError, TypeError) as error:
        raise damaged(path, REMEDY, error) from error


def publish(export: Path, folder: Path) -> Published:
    """Make ``export`` the newest version in ``folder``, with a delta from the previous version if
    the tables have the same shape and at most half of their rows differ.

    If the model is already the newest, there is no new version. The next call repeats one that was
    stopped. Files of the whole model are hard links if the file system supports them.
    """
    try:
        before = current(folder)
    except InputError:  # servers recognise a new model by its hash, whatever its number
        before = None
    model = model_hash(export)
    if before is not None and before.model == model:
        return before
    folder.mkdir(parents=True, exist_ok=True)
    version = 1 if before is None else before.version + 1
    rows = None
    if before is not None:
        base = full_folder(folder, before.version)
        rows = _changed_rows(base / WEIGHTS_FILE, export / WEIGHTS_FILE)
    if rows is not None and before is not None:
        with _written(delta_folder(folder, version)) as partial:
            _write_delta(partial, export, full_folder(folder, before.version), before.model, rows)
    with _written(full_folder(folder, version)) as partial:
        link_files(export, partial)
    published = Published(version, model, None if rows is None else len(rows))
    write_atomically(folder / CURRENT_FILE, json.dumps(asdict(published)).encode())
    for path in folder.iterdir():
        kind, _, number = path.name.partition("-")
        oldest = {"full": version, "delta": version - KEPT_DELTAS + 1}.get(kind)
        if oldest is not None and number.isdigit() and int(number) < oldest:
            shutil.rmtree(path)
    return published


def read_delta(folder: Path) -> Delta:
    """A delta, checked against its checksums.

    Raises:
        InputError: it is missing or damaged.
    """
    if not (folder / SUMS_FILE).is_file():
        raise InputError(f"{folder}: no such delta")
    check_sums(folder, REMEDY)
    facts, path = read_json(folder / DELTA_FILE), folder / ROWS_FILE
    values = read_array(path, TABLES)
    assert values is not None
    rows, scales = read_array(path, ROWS), read_array(path, SCALES)
    return Delta(facts["base"], facts["model"], folder, np.asarray(rows), values, scales)


def _changed_rows(before: Path, after: Path) -> NDArray[np.int64] | None:
    """Rows [K] whose stored bits differ; None if the tables have another shape or type, more than
    half of the rows differ, or ``before`` is damaged."""
    try:
        old, new = Tables.map(before), Tables.map(after)
    except InputError:
        return None
    if (old.values.shape, old.values.dtype) != (new.values.shape, new.values.dtype):
        return None
    found = [np.zeros(0, np.int64)]
    for part in _parts(len(new.values)):
        differs = (_bits(old.values[part]) != _bits(new.values[part])).any(axis=1)
        if old.scales is not None and new.scales is not None:
            differs |= _bits(old.scales[part]) != _bits(new.scales[part])
        found.append(np.flatnonzero(differs) + part.start)
    rows = np.concatenate(found)
    return rows if len(rows) <= LARGEST_SHARE * len(new.values) else None


def _parts(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """The bits as integers, so that NaN equals itself and -0 differs from 0."""
    return values.view(f"u{values.dtype.itemsize}")


def _write_delta(
    folder: Path, export: Path, base: Path, base_model: str, rows: NDArray[np.int64]
) -> None:
    from safetensors.numpy import save_file

    tables = Tables.map(export / WEIGHTS_FILE)
    arrays = {ROWS: rows, TABLES: tables.values[rows]}
    if tables.scales is not None:
        arrays[SCALES] = tables.scales[rows]
    save_file(arrays, folder / ROWS_FILE)
    names = [NETWORK_FILE, MODEL_FILE, CALIBRATION_FILE, CARD_FILE]
    if file_hash(export / ENCODER_FILE) != file_hash(base / ENCODER_FILE):
        names += [name for name in (ENCODER_FILE, COUNTERS_FILE) if (export / name).is_file()]
    for name in names:
        link_file(str(export / name), str(folder / name))
    write_json(folder / DELTA_FILE, {"base": base_model, "model": model_hash(export)})
    write_sums(folder)


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """An empty folder that replaces ``target`` when the block succeeds."""
    partial = target.with_name(f"{target.name}{PARTIAL_SUFFIX}")
    for left in (partial, target):  # left by a call that was stopped
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    yield partial
    partial.rename(target)
