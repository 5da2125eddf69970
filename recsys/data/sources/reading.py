"""Table files, batch by batch: the columns that are asked for, one type each."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from recsys.config import InputError
from recsys.data.sources.files import blocks, lines, uncompressed
from recsys.scratch import scratch

SEPARATORS = {"csv": ",", "tsv": "\t"}
BATCH_ROWS = 10_000
DUPLICATED = "_duplicated_0"  # what polars adds to a name that a header holds again


@dataclass(frozen=True)
class Tables:
    """Files that are read as one log: the used columns of each, and their types in all of them.

    Compressed text is unpacked into a file of ``folder`` as long as it is read.
    """

    files: list[Path]
    file_format: str
    quotes: str
    folder: Path
    schemas: dict[Path, dict[str, pl.DataType]]
    types: dict[str, pl.DataType]

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[tuple[int, pl.DataFrame]]:
        """At most ``rows`` rows at a time, in their order, and the index of their file; the first
        one may be empty.

        Raises:
            InputError: a file cannot be read.
        """
        yield 0, pl.DataFrame(schema=self.types)
        for index, file in enumerate(self.files):
            columns = self.schemas[file]
            chosen = [
                pl.col(name).cast(dtype)
                if name in columns
                else pl.lit(None, dtype=dtype).alias(name)
                for name, dtype in self.types.items()
            ]
            for frame in self._of_file(
                file, [name for name in self.types if name in columns], rows
            ):
                yield index, frame.select(chosen)

    def rows(self) -> int:
        """Rows of all files; 0 where only reading them would tell."""
        if self.file_format not in ("parquet", "arrow"):
            return 0
        counts = (_scan(file, self.file_format).select(pl.len()) for file in self.files)
        return sum(count.collect().item() for count in counts)

    def _of_file(self, file: Path, columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
        if self.file_format in ("parquet", "arrow"):
            yield from _batches(_scan(file, self.file_format).select(columns), self, file, rows)
            return
        with uncompressed(file, self.folder) as text:
            if self.file_format == "jsonl":
                log = pl.scan_ndjson(text, schema=self.schemas[file])
                yield from _batches(log.select(columns), self, file, rows)
                return
            separator = SEPARATORS[self.file_format]
            log = pl.scan_csv(
                text,
                separator=separator,
                infer_schema=False,
                quote_char=None if self.quotes == "no" else '"',
                glob=False,
            )
            found = 0
            for frame in _batches(log.select(columns), self, file, rows):
                found += frame.height
                yield frame
            width = len(self.schemas[file])
            _check_lines(file, text, separator.encode(), width, found, self.quotes)


def _batches(log: pl.LazyFrame, tables: Tables, file: Path, rows: int) -> Iterator[pl.DataFrame]:
    """What ``log`` gives, batch by batch."""
    try:
        yield from log.collect_batches(chunk_size=rows, maintain_order=True, engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(file, tables.file_format, error) from error


def _scan(file: Path, file_format: str) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False) if file_format == "parquet" else pl.scan_ipc(file)


def open_tables(
    files: Sequence[Path],
    file_format: str,
    wanted: Iterable[str],
    also: Callable[[str], bool],
    quotes: str,
    folder: Path,
) -> Tables:
    """The columns ``wanted`` of the files, and those of which ``also`` is true.

    A column that a file lacks is missing in its rows.

    Args:
        quotes: of CSV and TSV, see :class:`recsys.data.settings.TableSettings`.
        folder: for temporary files.

    Raises:
        InputError: a file cannot be read, no file has a column that is wanted (the message names
            the nearest), or two files hold a column in types that do not go together.
    """
    schemas = {file: _schema(file, file_format, quotes, folder) for file in files}
    names = list(dict.fromkeys(name for schema in schemas.values() for name in schema))
    columns = list(dict.fromkeys(wanted))
    for name in columns:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(names)}"
            raise InputError(f"{files[0]}: no column {name!r}; {hint}")
    columns += [name for name in names if name not in columns and also(name)]
    for file, schema in schemas.items():
        twice = next((name for name in columns if name + DUPLICATED in schema), None)
        if twice is not None:
            raise InputError(f"{file}: its header holds the column {twice!r} twice")
    types = {name: _common_type(name, schemas, file_format) for name in columns}
    return Tables(list(files), file_format, quotes, folder, schemas, types)


def read_tables(
    files: Sequence[Path],
    file_format: str,
    wanted: Iterable[str],
    also: Callable[[str], bool],
    quotes: str = "checked",
) -> list[pl.DataFrame]:
    """Each file's rows, in memory; see :func:`open_tables`. All frames have the same columns and
    types.

    Raises:
        InputError: as :func:`open_tables`.
    """
    with TemporaryDirectory(dir=scratch()) as folder:
        tables = open_tables(files, file_format, wanted, also, quotes, Path(folder))
        of_file = [[pl.DataFrame(schema=tables.types)] for _ in files]
        for index, frame in tables.batches():
            of_file[index].append(frame)
    return [pl.concat(frames) for frames in of_file]


def _schema(file: Path, file_format: str, quotes: str, folder: Path) -> dict[str, pl.DataType]:
    try:
        if file_format in ("parquet", "arrow"):
            return dict(_scan(file, file_format).collect_schema())
        if file_format == "jsonl":
            with uncompressed(file, folder) as text:
                # All lines decide the types: an id may first be null, or be a float once
                return dict(pl.scan_ndjson(text, infer_schema_length=None).collect_schema())
        first = next(lines(file), b"")
        return dict(
            pl.read_csv(
                first + b"\n",
                n_rows=0,
                separator=SEPARATORS[file_format],
                infer_schema=False,
                quote_char=None if quotes == "no" else '"',
            ).schema
        )
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


def _common_type(
    name: str, schemas: Mapping[Path, Mapping[str, pl.DataType]], file_format: str
) -> pl.DataType:
    """The type that holds the column ``name`` of every file; where they differ, one that is all
    null decides nothing."""
    found: pl.DataType = pl.Null()
    types = {file: schema[name] for file, schema in schemas.items() if name in schema}
    differ = len(set(types.values())) > 1
    first = next(iter(types))
    for file, dtype in types.items():
        if differ and file_format in ("parquet", "arrow") and _all_null(file, file_format, name):
            continue
        wider = _wider(found, dtype)
        if wider is None:
            raise InputError(
                f"{file}: column {name!r} holds {dtype}, but {found} in {first}; make them one type"
            )
        if found == pl.Null:
            first = file
        found = wider
    return found


def _all_null(file: Path, file_format: str, name: str) -> bool:
    try:
        count = _scan(file, file_format).select(pl.col(name).count()).collect(engine="streaming")
        return count.item() == 0
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(file, file_format, error) from error


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
