"""Criteo display logs: label, 13 integers, 26 hexadecimal categories, no times."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.collisions import TableUse
from recsys.data.encoder import (
    EXAMPLES_PER_DOMAIN,
    DenseEncoding,
    Encoder,
    IdEncoding,
    RawColumn,
    plain_rows,
)
from recsys.data.encoding import hash_to_rows, milliseconds, signed_log1p
from recsys.data.schema import CategoricalFeature
from recsys.data.settings import CriteoSettings
from recsys.data.sources.base import CONTENT_CHARACTERS, Chunk, Source
from recsys.data.sources.files import lines, resolve_files, short_names
from recsys.units import MS_PER_SECOND

INTEGERS = [f"integer_{index}" for index in range(1, 14)]
CATEGORIES = [f"category_{index}" for index in range(1, 27)]
COLUMNS = ["label", *INTEGERS, *CATEGORIES]
DOMAIN = "all"
NOT_UTF8 = "\ufffd"  # what stands for bytes that are no UTF-8


def criteo_source(settings: CriteoSettings, root: Path) -> Source:
    """Criteo files, in the order given, as one stream; each row is its own group.

    Raises:
        InputError: a file is missing.
    """
    files = resolve_files(settings.files, root)
    uses = [TableUse(name, settings.table_rows) for name in CATEGORIES]
    encoder, examples = _encoder(settings), list[pl.DataFrame]()
    return Source(
        dense=INTEGERS,
        categorical=[CategoricalFeature(name, settings.table_rows) for name in CATEGORIES],
        domains=[DOMAIN],
        chunks=_chunks(settings, files, uses, examples),
        encoder=lambda: replace(encoder, examples=plain_rows(examples[0], encoder.columns)),
        origin_ms=milliseconds(settings.start, "criteo.start"),
        files=files,
        uses=uses,
    )


def _encoder(settings: CriteoSettings) -> Encoder:
    """What encodes raw rows, which have the columns' names of here, as the chunks are."""
    return Encoder(
        columns=[
            *(RawColumn(name, "integer", is_text=True, optional=True) for name in INTEGERS),
            *(RawColumn(name, "text", is_text=True, optional=True) for name in CATEGORIES),
        ],
        dense=[DenseEncoding(name, name) for name in INTEGERS],
        ids=[IdEncoding(name, [name], settings.table_rows) for name in CATEGORIES],
        stripped=INTEGERS,
        domains=[DOMAIN],
    )


def _chunks(
    settings: CriteoSettings,
    files: list[Path],
    uses: list[TableUse],
    examples: list[pl.DataFrame],
) -> Iterator[Chunk]:
    """Chunks of ``chunk_rows``, across the ends of files; an InputError names the file.

    Puts the first raw rows into ``examples``.
    """
    start_ms = milliseconds(settings.start, "criteo.start")
    first = 0
    for batch, names in _batches(files, settings.chunk_rows):
        # A newline is never part of what replaces foreign bytes
        text = b"\n".join(batch).decode(errors="replace").split("\n")
        found = pl.Series("line", text).str.strip_chars("\r\n")
        yield _chunk(found, names, first, start_ms, settings, uses, examples)
        first += len(batch)


def _batches(files: list[Path], rows: int) -> Iterator[tuple[list[bytes], pl.Series]]:
    """``rows`` lines at a time, across the ends of files, and the file of each."""
    batch: list[bytes] = []
    counts: list[tuple[str, int]] = []
    for path, name in zip(files, short_names(files), strict=True):
        rest = lines(path)
        while part := list(islice(rest, rows - len(batch))):
            batch += part
            counts.append((name, len(part)))
            if len(batch) == rows:
                yield batch, _repeated(counts)
                batch, counts = [], []
    if batch:
        yield batch, _repeated(counts)


def _repeated(counts: list[tuple[str, int]]) -> pl.Series:
    return pl.concat([pl.select(file=pl.repeat(name, count))["file"] for name, count in counts])


def _chunk(
    text: pl.Series,
    names: pl.Series,
    first: int,
    start_ms: int,
    settings: CriteoSettings,
    uses: list[TableUse],
    examples: list[pl.DataFrame],
) -> Chunk:
    fields = text.str.split("\t")
    raw = pl.DataFrame(
        {"line": text, "file": names, "fields": fields, "row": first + np.arange(len(text))}
    ).with_columns(
        pl.col("fields").list.get(index, null_on_oob=True).alias(name)
        for index, name in enumerate(COLUMNS)
    )
    numbers = {name: pl.col(name).cast(pl.Int64, strict=False) for name in INTEGERS}
    unparsable = pl.any_horizontal(
        (pl.col(name) != "") & numbers[name].is_null() for name in INTEGERS
    )
    reason = (
        pl.when(pl.col("fields").list.len() != len(COLUMNS))
        .then(pl.lit(f"expected {len(COLUMNS)} fields"))
        .when(~pl.col("label").is_in(["0", "1"]))
        .then(pl.lit("label outside {0, 1}"))
        .when(unparsable)
        .then(pl.lit("unparsable number"))
        .when(pl.col("line").str.contains(NOT_UTF8, literal=True))
        .then(pl.lit("not UTF-8"))
    )
    raw = raw.with_columns(reason.alias("reason"))
    bad = raw.filter(pl.col("reason").is_not_null())
    bad = bad.select(
        "row", "file", "reason", pl.col("line").str.slice(0, CONTENT_CHARACTERS).alias("content")
    )
    good = raw.filter(pl.col("reason").is_null())
    event_time = start_ms + (pl.col("row") / settings.rows_per_second * MS_PER_SECOND).cast(
        pl.Int64
    )
    frame = good.select(
        pl.col("row").alias("example_id"),
        event_time.alias("event_time"),
        event_time.alias("label_time"),
        pl.lit(0, dtype=pl.Int32).alias("domain"),
        pl.col("row").alias("group"),
        pl.col("label").cast(pl.Float32),
        *numbers.values(),
        *(pl.col(name).replace("", None) for name in CATEGORIES),
    )
    if not examples and frame.height:
        examples.append(frame.select(*INTEGERS, *CATEGORIES).head(EXAMPLES_PER_DOMAIN))
    frame = frame.with_columns(signed_log1p(name) for name in INTEGERS)
    frame = frame.with_columns(
        hash_to_rows(frame[name], settings.table_rows, use=use)
        for name, use in zip(CATEGORIES, uses, strict=True)
    )
    return Chunk(frame, bad, read=len(text))
