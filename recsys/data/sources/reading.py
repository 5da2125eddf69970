"""Table files to one frame: the columns that are asked for, one type each."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import polars as pl

from recsys.config import InputError
from recsys.data.sources.files import blocks, lines, uncompressed

SEPARATORS = {"csv": ",", "tsv": "\t"}
DUPLICATED = "_duplicated_0"  # what polars adds to a name that a header holds again


def read_tables(
    files: Sequence[Path],
    file_format: str,
    wanted: Iterable[str],
    also: Callable[[str], bool],
    quotes: str = "checked",
) -> list[pl.DataFrame]:
    """Each file's rows with the columns ``wanted``, and those of which ``also`` is true.

    All frames have the same columns and types: a column that a file lacks is missing in its rows.

    Args:
        quotes: of CSV and TSV, see :class:`recsys.data.settings.TableSettings`.

    Raises:
        InputError: a file cannot be read, no file has a column that is wanted (the message names
            the nearest), or two files hold a column in types that do not go together.
    """
    headers = {file: _header(file, file_format, quotes) for file in files}
    names = list(dict.fromkeys(name for header in headers.values() for name in header))
    columns = list(dict.fromkeys(wanted))
    for name in columns:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(names)}"
            raise InputError(f"{files[0]}: no column {name!r}; {hint}")
    columns += [name for name in names if name not in columns and also(name)]
    for file, header in headers.items():
        twice = next((name for name in columns if name + DUPLICATED in header), None)
        if twice is not None:
            raise InputError(f"{file}: its header holds the column {twice!r} twice")
    frames = []
    for file, header in headers.items():
        own = [name for name in columns if name in header]
        frames.append(_read(file, file_format, own, len(header), quotes))
    types = {name: _common_type(name, files, frames) for name in columns}
    return [
        frame.select(
            pl.col(name).cast(dtype)
            if name in frame.columns
            else pl.lit(None, dtype=dtype).alias(name)
            for name, dtype in types.items()
        )
        for frame in frames
    ]


def _header(file: Path, file_format: str, quotes: str) -> list[str]:
    try:
        if file_format == "parquet":
            return list(pl.read_parquet_schema(file))
        if file_format == "arrow":
            return list(pl.read_ipc_schema(file))
        if file_format == "jsonl":
            return _read(file, file_format, [], 0, quotes).columns
        first = next(lines(file), b"")
        return pl.read_csv(
            first + b"\n",
            n_rows=0,
            separator=SEPARATORS[file_format],
            infer_schema=False,
            quote_char=None if quotes == "no" else '"',
        ).columns
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(file, file_format, error) from error


def _read(
    file: Path, file_format: str, columns: list[str], width: int, quotes: str
) -> pl.DataFrame:
    """``columns`` of a file of ``width``; of JSON lines all of them."""
    try:
        if file_format == "parquet":
            return pl.read_parquet(file, columns=columns, glob=False)
        if file_format == "arrow":
            return pl.read_ipc(file, columns=columns)
        with uncompressed(file) as text:
            if file_format == "jsonl":
                # All lines decide the types: an id may first be null, or be a float once
                return pl.read_ndjson(text, infer_schema_length=None)
            frame = pl.read_csv(
                text,
                separator=SEPARATORS[file_format],
                columns=columns,
                infer_schema=False,
                quote_char=None if quotes == "no" else '"',
                glob=False,
            )
            _check_lines(file, text, SEPARATORS[file_format].encode(), width, frame.height, quotes)
            return frame
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(file, file_format, error) from error


def _check_lines(
    file: Path, text: Path, separator: bytes, width: int, rows: int, quotes: str
) -> None:
    """Check what the reader passes over: rows with too few fields, and quotes that swallow lines.

    Raises:
        InputError: there are such; the message names ``file``, whose contents are in ``text``.
    """
    separators = ends = blank = quoted = 0
    last = b"\n"
    for block in blocks(text):
        separators += block.count(separator)
        ends += block.count(b"\n")
        blank += block.count(b"\n\n") + block.count(b"\n\r\n")
        quoted += block.count(b'"')
        last = block[-1:]
    count = ends + (last != b"\n") - 1  # without the header
    if quotes == "checked" and quoted and count - blank > rows:
        raise InputError(
            f"{file}: {count:,} lines are {rows:,} rows, since quotes span lines; set quotes: no "
            f"if they are plain characters, quotes: yes if fields hold line ends"
        )
    if (quoted and quotes != "no") or separators >= (count + 1) * (width - 1):
        return
    for number, line in enumerate(lines(text)):
        fields = line.count(separator) + 1
        if line.strip(b"\r") and fields < width:
            raise InputError(f"{file}: line {number + 1} has {fields} of {width} fields")


def _unreadable(file: Path, file_format: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0]
    hint = "; convert it to UTF-8 (iconv)" if "utf-8" in reason.lower() else ""
    return InputError(f"{file}: cannot be read as {file_format}: {reason}{hint}")


def _common_type(name: str, files: Sequence[Path], frames: Sequence[pl.DataFrame]) -> pl.DataType:
    """The type that holds the column ``name`` of every frame; one that is all null decides
    nothing."""
    found: pl.DataType = pl.Null()
    first = files[0]
    for file, frame in zip(files, frames, strict=True):
        if name not in frame.columns or frame[name].null_count() == frame.height:
            continue
        wider = _wider(found, frame.schema[name])
        if wider is None:
            raise InputError(
                f"{file}: column {name!r} holds {frame.schema[name]}, but {found} in {first}; make "
                f"them one type"
            )
        if found == pl.Null:
            first = file
        found = wider
    return found


def _wider(one: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    """The type that holds the values of both; None: none does without changing what they are."""
    if one == other or other == pl.Null:
        return one
    if one == pl.Null:
        return other
    if isinstance(one, pl.List) and isinstance(other, pl.List):
        inner = _wider(pl.Series(dtype=one.inner).dtype, pl.Series(dtype=other.inner).dtype)
        return None if inner is None else pl.List(inner)
    texts = (pl.String, pl.Categorical, pl.Enum)
    if isinstance(one, texts) and isinstance(other, texts):
        return pl.String()
    both_numbers = one.is_numeric() and other.is_numeric()
    zones = {getattr(dtype, "time_zone", None) for dtype in (one, other)}
    both_times = {one.base_type(), other.base_type()} <= {pl.Datetime, pl.Date} and len(zones) == 1
    if not (both_numbers or both_times):
        return None
    frames = [pl.DataFrame(schema={"a": dtype}) for dtype in (one, other)]
    return pl.concat(frames, how="vertical_relaxed").schema["a"]
