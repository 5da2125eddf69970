"""``towerflow compare``: two models, or the models of two runs, on the same rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.schema import WEIGHT
from recsys.evaluation.comparison import Comparison, compare_values, holm
from recsys.evaluation.metrics import compute_metrics
from recsys.evaluation.predictions import PREDICTIONS_DIR
from recsys.evaluation.resampling import blocks_of, resample
from recsys.evaluation.settings import EvaluateSettings
from recsys.evaluation.streamed import Rows, stream_metrics
from recsys.progress import RowProgress

ROWS_IN_MEMORY = 10_000_000  # larger sets are read once, in pieces
ROWS_AT_ONCE = 1 << 21
SHOWN_IDS = 3  # of rows that only one side has
ROW = ["example_id", "group", "event_time"]


@dataclass(frozen=True)
class Pair:
    """A model on both sides ("" if each side is a single model), the number of rows, and the
    metrics of the second minus those of the first."""

    model: str
    rows: int
    seeds: int
    comparisons: list[Comparison]


def compare_sources(
    first: Path,
    second: Path,
    settings: EvaluateSettings,
    first_window: int,
    task: str | None = None,
) -> list[Pair]:
    """Compare every model that is in both folders; p values are corrected for all of them.

    Args:
        first, second: the folder of a run (with its models in ``models``), of a model or of an arm
            (with its seeds), or a folder of predictions, one Parquet file per window.
        settings: blocks, samples, confidence and seed of the bootstrap.
        first_window: index of the first window to compare, in the order of names.
        task: another task than the models' main one; None: the main one.

    Raises:
        InputError: a folder has no predictions, the two have no model in common, or a model's rows
            differ.
    """
    found = [find_models(folder) for folder in (first, second)]
    if [list(one) for one in found] == [[""], [""]]:
        names = [""]
    else:
        names = [name for name in found[0] if name in found[1]]
    if not names:
        raise InputError(
            f"{first} has {_listed(found[0])}, {second} has {_listed(found[1])}: no model in "
            f"common; name one of each side, e.g. {_example(first, found[0])}"
        )
    pairs = []
    for name in names:
        sides = [one[name] for one in found]
        counts = [len(side) for side in sides]
        if counts[0] != counts[1] and 1 not in counts:
            raise InputError(
                f"{name or first}: {counts[0]} and {counts[1]} seeds cannot be paired; name the "
                f"folder of one seed of each side"
            )
        pairs.append(_compare(name, sides[0], sides[1], settings, first_window, task))
    corrected = holm([one.p for pair in pairs for one in pair.comparisons])
    places = iter(corrected)
    return [
        replace(
            pair,
            comparisons=[replace(one, p_holm=next(places)) for one in pair.comparisons],
        )
        for pair in pairs
    ]


def find_models(source: Path) -> dict[str, list[Path]]:
    """The folders of predictions in ``source``, by model, one per seed.

    Raises:
        InputError: there are none.
    """
    root = source / "models" if (source / "models").is_dir() else source
    if any(root.glob("*.parquet")):
        return {"": [root]}
    models: dict[str, list[Path]] = {}
    for folder in sorted(root.rglob(PREDICTIONS_DIR)):
        parts = folder.relative_to(root).parts[:-1]
        if any(folder.glob("*.parquet")):
            name = "/".join(part for part in parts if not part.startswith("seed-"))
            models.setdefault(name, []).append(folder)
    if not models:
        raise InputError(
            f"{source}: no predictions; expected a run's folder, a model's or an arm's, or Parquet "
            f"files with example_id, label and logit"
        )
    return models


def _compare(
    name: str,
    first: Sequence[Path],
    second: Sequence[Path],
    settings: EvaluateSettings,
    first_window: int,
    task: str | None,
) -> Pair:
    label, logit = ("label", "logit") if task is None else (f"label_{task}", f"logit_{task}")
    seeds = max(len(first), len(second))
    files = _files(first[0], first_window, [*ROW, label, logit])
    weighted = all(WEIGHT in pq.read_schema(path).names for path in files)
    row = [*ROW, *([WEIGHT] if weighted else [])]
    total = sum(pq.read_metadata(path).num_rows for path in files)
    arrays, what = len(first) + len(second), f"compare {name}".strip()
    if total > ROWS_IN_MEMORY:
        sides = {"first": first, "second": second}
        parts = _parts(sides, first_window, row, label, logit, settings.blocks)
        with RowProgress(what, arrays * total) as progress:
            rows, measured, drawn = stream_metrics(
                parts, settings.bootstrap_samples, settings.seed, progress.advance
            )
        _check_rows(rows, first[0], label, first_window)
        return _pair(name, rows, seeds, measured, drawn, settings)
    columns = [*row, label, logit]
    base = _read(first[0], first_window, columns)
    logits = {
        side: [
            _aligned(base, first[0], _read(folder, first_window, columns), folder, label)[logit]
            for folder in folders
        ]
        for side, folders in (("first", first), ("second", second))
    }
    known = base[label].is_not_nan()
    rows = base.filter(known)
    _check_rows(rows.height, first[0], label, first_window)
    labels, groups = rows[label].to_numpy(), rows["group"].to_numpy()
    models = {side: [one.filter(known).to_numpy() for one in own] for side, own in logits.items()}
    weights = rows[WEIGHT].to_numpy() if weighted else None
    places = (rows[name].to_numpy() for name in ("event_time", "window"))
    blocks = None if settings.blocks == "group" else blocks_of(settings.blocks, groups, *places)
    measured = {
        side: [compute_metrics(one, labels, groups, weights).as_dict() for one in own]
        for side, own in models.items()
    }
    with RowProgress(what, arrays * rows.height) as progress:
        drawn = resample(
            models,
            labels,
            groups,
            settings.bootstrap_samples,
            settings.seed,
            blocks,
            advance=progress.advance,
            weights=weights,
        )
    return _pair(name, rows.height, seeds, measured, drawn, settings)


def _check_rows(rows: int, folder: Path, label: str, first_window: int) -> None:
    if not rows:
        raise InputError(
            f"{folder}: no rows with a {label} from window {first_window} on; see --first-window"
        )


def _pair(
    name: str,
    rows: int,
    seeds: int,
    measured: dict[str, list[dict[str, float]]],
    drawn: dict[str, NDArray[np.float64]],
    settings: EvaluateSettings,
) -> Pair:
    # A side with one seed is paired with each seed of the other
    values = {side: own * (seeds // len(own)) for side, own in measured.items()}
    differences = drawn["second"] - drawn["first"]
    comparisons = compare_values(
        values["first"], values["second"], differences, settings.confidence
    )
    return Pair(name, rows, seeds, comparisons)


def _files(folder: Path, first_window: int, columns: list[str]) -> list[Path]:
    """The windows' files from index ``first_window`` on."""
    files = sorted(folder.glob("*.parquet"))
    if not 0 <= first_window < len(files):
        raise InputError(
            f"{folder}: {len(files)} windows, none left from window {first_window} on; see "
            f"--first-window"
        )
    for path in files[first_window:]:
        names = pq.read_schema(path).names
        missing = [name for name in columns if name not in names]
        if missing:
            raise InputError(f"{path}: no column {missing[0]!r}; predictions have {columns}")
    return files[first_window:]


def _parts(
    sides: Mapping[str, Sequence[Path]],
    first_window: int,
    row: Sequence[str],
    label: str,
    logit: str,
    blocks: str,
) -> Iterator[Rows]:
    """All rows, in pieces; every folder must have them in the same order.

    Raises:
        InputError: a folder has another order or other rows.
    """
    folders = [folder for own in sides.values() for folder in own]
    columns = [*row, label, logit]
    files = [_files(folder, first_window, columns) for folder in folders]
    for folder, own in zip(folders, files, strict=True):
        if [path.name for path in own] != [path.name for path in files[0]]:
            raise InputError(f"{folders[0]} and {folder}have different windows")
    for place, paths in enumerate(zip(*files, strict=True), start=first_window):
        readers = [
            pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE, columns=columns) for path in paths
        ]
        for batches in zip_longest(*readers):
            first = batches[0]
            for path, batch in zip(paths, batches, strict=True):
                for column in ("example_id", "group", label):
                    if first is None or batch is None or not _same(first[column], batch[column]):
                        raise InputError(
                            f"{paths[0]} and {path}: rows differ in {column}, or in their "
                            f"order; of more than {ROWS_IN_MEMORY:,} rows it must be the same"
                        )
            labels = first[label].to_numpy(zero_copy_only=False)
            known = ~np.isnan(labels)
            block = blocks_of(
                blocks,
                first["group"].to_numpy(),
                first["event_time"].to_numpy(),
                np.full(len(labels), place),
            )
            logits = iter([batch[logit].to_numpy(zero_copy_only=False)[known] for batch in batches])
            yield Rows(
                labels[known],
                block[known],
                {side: [next(logits) for _ in own] for side, own in sides.items()},
                first[WEIGHT].to_numpy()[known] if WEIGHT in row else None,
            )


def _same(first: pa.Array, second: pa.Array) -> bool:
    """Whether two columns are equal, where NaN equals NaN."""
    return first is second or np.array_equal(
        first.to_numpy(zero_copy_only=False),
        second.to_numpy(zero_copy_only=False),
        equal_nan=pa.types.is_floating(first.type),
    )


def _read(folder: Path, first_window: int, columns: list[str]) -> pl.DataFrame:
    """The rows of the windows from index ``first_window`` on, with the window's index."""
    frames = [
        pl.read_parquet(path, columns=columns).with_columns(
            window=pl.lit(place), file=pl.lit(path.stem)
        )
        for place, path in enumerate(_files(folder, first_window, columns), start=first_window)
    ]
    return pl.concat(frames)


def _aligned(
    base: pl.DataFrame, base_folder: Path, frame: pl.DataFrame, folder: Path, label: str
) -> pl.DataFrame:
    """``frame`` in the order of ``base``.

    Raises:
        InputError: the rows differ; the message names some of those.
    """
    if not frame["example_id"].equals(base["example_id"]):
        for own, other, where in ((base, frame, base_folder), (frame, base, folder)):
            only = own.join(other, on="example_id", how="anti")
            if only.height:
                ids = only["example_id"].head(SHOWN_IDS).to_list()
                raise InputError(
                    f"{base_folder} and {folder} have different rows: {only.height:,} only in "
                    f"{where}, such as example_id {', '.join(map(str, ids))} of window "
                    f"{only['file'][0]}"
                )
        repeated = frame.filter(frame["example_id"].is_duplicated())
        if repeated.height or base["example_id"].is_duplicated().any():
            raise InputError(f"{base_folder} or {folder}: an example_id appears twice")
        frame = base.select("example_id").join(
            frame, on="example_id", how="left", maintain_order="left"
        )
    for column in (label, "group"):
        differ = frame[column].ne_missing(base[column]) & ~(
            frame[column].cast(pl.Float64).is_nan() & base[column].cast(pl.Float64).is_nan()
        )
        if differ.any():
            one = base.filter(differ)
            raise InputError(
                f"{base_folder} and {folder}: {int(differ.sum()):,} rows differ in {column}, such "
                f"as example_id {one['example_id'][0]} of window {one['file'][0]}"
            )
    return frame


def _listed(models: dict[str, list[Path]]) -> str:
    return ", ".join(name or "one model" for name in models)


def _example(source: Path, models: dict[str, list[Path]]) -> Path:
    folder = next(iter(models.values()))[0].parent
    return folder if folder.is_relative_to(source) and folder != source.parent else source
