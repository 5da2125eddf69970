"""Criteo display logs: label, 13 integers, 26 hexadecimal categories, no times."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.collisions import TableUse
from recsys.data.encoder import (
    EXAMPLES_PER_DOMAIN,
    Encoder,
    plain_rows,
)
from recsys.data.encoder_format import (
    DenseEncoding,
    IdEncoding,
    RawColumn,
)
from recsys.data.encoding import (
    RESPELT,
    canonical_text,
    milliseconds,
    signed_log1p,
    table_rows_of,
    text_hash,
)
from recsys.data.schema import CategoricalFeature
from recsys.data.settings import CriteoSettings
from recsys.data.sources.base import BAD_SCHEMA, CONTENT_CHARACTERS, Chunk, Source
from recsys.data.sources.files import line_blocks, resolve_files, short_names
from recsys.units import MS_PER_SECOND

INTEGERS = [f"integer_{index}" for index in range(1, 14)]
CATEGORIES = [f"category_{index}" for index in range(1, 27)]
COLUMNS = ["label", *INTEGERS, *CATEGORIES]
LABELS = ["0", "1"]
DOMAIN = "all"
NOT_UTF8 = "\ufffd"  # replaces bytes that are not UTF-8


def criteo_source(settings: CriteoSettings, root: Path | str, folder: Path) -> Source:
    """Criteo files, in the given order, as one stream; each row is its own group.

    ``folder`` holds copies of files behind URLs.

    Raises:
        InputError: a file is missing.
    """
    files = resolve_files(settings.files, root, folder)
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
        negative_rates=[] if settings.negative_rate is None else [settings.negative_rate],
    )


def _encoder(settings: CriteoSettings) -> Encoder:
    """An encoder for raw rows with this module's column names, equal to that of the chunks."""
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
    for text, counts in _batches(files, settings.chunk_rows):
        rows = sum(count for _, count in counts)
        good, bad = _clean_rows(text, first, rows), pl.DataFrame(schema=BAD_SCHEMA)
        if good is None:
            good, bad = _checked_rows(text, _repeated(counts), first)
        if not examples and good.height:
            examples.append(good.select(*INTEGERS, *CATEGORIES).head(EXAMPLES_PER_DOMAIN))
        yield Chunk(_encoded(good, text, start_ms, settings, uses), bad, read=rows)
        first += rows


def _batches(files: list[Path], rows: int) -> Iterator[tuple[bytes, list[tuple[str, int]]]]:
    """``rows`` lines at a time, across file boundaries, and how many of them come from each
    file."""
    batch: list[bytes] = []
    counts: list[tuple[str, int]] = []
    wanted = rows
    for path, name in zip(files, short_names(files), strict=True):
        for block in line_blocks(path):
            while block:
                part, count = block, block.count(b"\n")
                if count > wanted:
                    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
                    part, count = block[: int(ends[wanted - 1]) + 1], wanted
                block = block[len(part) :]
                batch.append(part)
                counts.append((name, count))
                wanted -= count
                if wanted == 0:
                    yield b"".join(batch), counts
                    batch, counts, wanted = [], [], rows
    if batch:
        yield b"".join(batch), counts


def _repeated(counts: list[tuple[str, int]]) -> pl.Series:
    return pl.concat([pl.select(file=pl.repeat(name, count))["file"] for name, count in counts])


def _clean_rows(text: bytes, first: int, rows: int) -> pl.DataFrame | None:
    """Row, label, integers and categories of ``rows`` lines, the fast way; None if each line must
    be checked."""
    separators = np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord("\t"))
    if separators != rows * (len(COLUMNS) - 1) or b"\r" in text:
        return None
    types = {name: pl.Int64 if name in INTEGERS else pl.String for name in COLUMNS}
    try:
        found = pl.read_csv(
            text, has_header=False, separator="\t", quote_char=None, schema=types, glob=False
        )
    except pl.exceptions.PolarsError:  # a field too many, not a number, not UTF-8
        return None
    if found.height != rows or not found["label"].is_in(LABELS).fill_null(False).all():
        return None
    return found.with_columns(pl.int_range(first, first + rows, dtype=pl.Int64).alias("row"))


def _checked_rows(text: bytes, names: pl.Series, first: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """As :func:`_clean_rows`, line by line, and the bad rows."""
    # The replacement for invalid bytes never contains a newline
    lines = pl.Series("line", text.decode(errors="replace").removesuffix("\n").split("\n"))
    lines = lines.str.strip_chars("\r\n")
    raw = pl.DataFrame(
        {
            "line": lines,
            "file": names,
            "fields": lines.str.split("\t"),
            "row": first + np.arange(len(lines)),
        }
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
        .when(~pl.col("label").is_in(LABELS))
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
    categories = [pl.col(name).replace("", None) for name in CATEGORIES]
    return good.select("row", "label", *numbers.values(), *categories), bad


def _encoded(
    good: pl.DataFrame,
    text: bytes,
    start_ms: int,
    settings: CriteoSettings,
    uses: list[TableUse],
) -> pl.DataFrame:
    """The columns of a part."""
    event_time = start_ms + (pl.col("row") / settings.rows_per_second * MS_PER_SECOND).cast(
        pl.Int64
    )
    # Hexadecimal digits have one spelling; columns with other texts are checked value by value
    plain = b"." not in text and b" " not in text and text.isascii()
    respelt = good.select(pl.col(CATEGORIES).is_in(RESPELT).any()).row(0)
    odd = [name for name, found in zip(CATEGORIES, respelt, strict=True) if found or not plain]
    good = good.with_columns(canonical_text(good[name]) for name in odd)
    hashed = good.select(text_hash(name) for name in CATEGORIES)
    ids = [
        pl.Series(name, table_rows_of(hashed[name].to_numpy(), settings.table_rows, use))
        for name, use in zip(CATEGORIES, uses, strict=True)
    ]
    return good.select(
        pl.col("row").alias("example_id"),
        event_time.alias("event_time"),
        event_time.alias("label_time"),
        pl.lit(0, dtype=pl.Int32).alias("domain"),
        pl.col("row").alias("group"),
        pl.col("label").cast(pl.Float32),
        *(signed_log1p(name) for name in INTEGERS),
        *ids,
    )
