"""Read table files batch by batch: the wanted columns, each with one type."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import InputError
from recsys.data.sources.files import blocks, hive_keys, lines, of_name, uncompressed
from recsys.scratch import scratch

SEPARATORS = {"csv": ",", "tsv": "\t"}
BATCH_ROWS = 10_000
PARTIAL_SHOWN = 10
DUPLICATED = "_duplicated_0"  # polars' suffix for a name that a header repeats


Place = tuple[int, int]  # a file, by its index, and a row of it


@dataclass(frozen=True)
class Piece:
    """A file, or a row group of Parquet: where it begins, and its size in bytes."""

    start: Place
    size: int


@dataclass(frozen=True)
class Tables:
    """Files that are read as one log: the used columns of each, and their types in all of them.

    Compressed text is unpacked into a file of ``folder`` as long as it is read. ``of_paths`` are
    columns that a file's path says, one text for all of its rows. The first file is read from its
    row ``first_row`` on, the last one up to ``end_row`` (None: to its end).
    """

    files: list[Path]
    file_format: str
    quotes: str
    folder: Path
    schemas: dict[Path, dict[str, pl.DataType]]
    types: dict[str, pl.DataType]
    header: Sequence[str] | None = None
    of_paths: dict[Path, dict[str, str | None]] = field(default_factory=dict)
    first_row: int = 0
    end_row: int | None = None

    def pieces(self) -> list[Piece]:
        """What can be read apart, in its order.

        Raises:
            InputError: a file cannot be read.
        """
        pieces: list[Piece] = []
        for index, file in enumerate(self.files):
            try:
                if self.file_format != "parquet":
                    pieces.append(Piece((index, 0), file.stat().st_size))
                    continue
                metadata = pq.read_metadata(file)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(file, self.file_format, error) from error
            row = 0
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                pieces.append(Piece((index, row), group.total_byte_size))
                row += group.num_rows
        return pieces

    def part(self, start: Place, end: Place) -> "Tables":
        """From ``start`` up to ``end``; each begins a piece, or the end is that of all files."""
        files = self.files[start[0] : end[0] + (end[1] > 0)]
        return replace(
            self,
            files=files,
            schemas={file: self.schemas[file] for file in files},
            of_paths={file: self.of_paths[file] for file in files if file in self.of_paths},
            first_row=start[1],
            end_row=end[1] or None,
        )

    def batches(
        self, rows: int = BATCH_ROWS, first_file: int = 0, first_row: int = 0
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """At most ``rows`` rows at a time, in their order, and the index of their file; the first
        one may be empty. From ``first_row`` of ``first_file`` on, counted from where it is begun.

        Raises:
            InputError: a file cannot be read.
        """
        yield first_file, pl.DataFrame(schema=self.types)
        for index, file in enumerate(self.files):
            if index < first_file:
                continue
            skipped = self.first_row if index == 0 else 0
            skipped += first_row if index == first_file else 0
            end = self.end_row if index == len(self.files) - 1 else None
            length = None if end is None else end - skipped
            columns, of_path = self.schemas[file], self.of_paths.get(file, {})
            chosen = [
                pl.col(name).cast(dtype)
                if name in columns
                else pl.lit(of_path.get(name), dtype=dtype).alias(name)
                for name, dtype in self.types.items()
            ]
            for frame in self._of_file(
                file, [name for name in self.types if name in columns], rows, skipped, length
            ):
                yield index, frame.select(chosen)

    def partial_columns(self) -> list[str]:
        """A line for each column that some files have and others do not, whether it is used or
        not; at most ten."""
        if self.header is not None:
            return []
        found = Counter(name for schema in self.schemas.values() for name in schema)
        files = len(self.schemas)
        return [
            f"column {name!r} is in {count:,} of {files:,} files, missing in the others"
            for name, count in found.items()
            if count < files
        ][:PARTIAL_SHOWN]

    def rows(self) -> int:
        """Rows of all files; 0 where only reading them would tell."""
        if self.file_format not in ("parquet", "arrow"):
            return 0
        counts = [
            _scan(file, self.file_format).select(pl.len()).collect().item() for file in self.files
        ]
        if self.end_row is not None:
            counts[-1] = self.end_row
        return sum(counts) - self.first_row

    def _of_file(
        self, file: Path, columns: list[str], rows: int, skipped: int, length: int | None
    ) -> Iterator[pl.DataFrame]:
        if self.file_format in ("parquet", "arrow"):
            log = _scan(file, self.file_format).select(columns).slice(skipped, length)
            yield from _batches(log, self, file, rows)
            return
        with uncompressed(file, self.folder) as text:
            if self.file_format == "jsonl":
                log = pl.scan_ndjson(text, schema=self.schemas[file])
                yield from _batches(log.select(columns).slice(skipped), self, file, rows)
                return
            separator = SEPARATORS[self.file_format]
            log = pl.scan_csv(
                text,
                separator=separator,
                has_header=self.header is None,
                schema=None if self.header is None else dict.fromkeys(self.header, pl.String),
                infer_schema=False,
                quote_char=None if self.quotes == "no" else '"',
                glob=False,
                raise_if_empty=self.header is None,
            )
            found = skipped
            for frame in _batches(log.select(columns).slice(skipped), self, file, rows):
                found += frame.height
                yield frame
            width = len(self.schemas[file])
            names = int(self.header is None)
            _check_lines(file, text, separator.encode(), width, found, self.quotes, names)


@contextmanager
def one_line(file: Path) -> Iterator[None]:
    """Makes an error of polars' one line that names ``file``."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:300]}") from error


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
    header: Sequence[str] | None = None,
    file_columns: Mapping[str, str] | None = None,
) -> Tables:
    """The columns ``wanted`` of the files, and those of which ``also`` is true.

    A column that a file lacks is missing in its rows. Folders of a file's path that are called
    ``key=value`` give it the column ``key``, unless it has one of that name.

    Args:
        quotes: of CSV and TSV, see :class:`recsys.data.settings.TableSettings`.
        folder: for temporary files.
        header: the names of the columns of CSV and TSV that have no line of names.
        file_columns: by the column's name a regular expression, whose group is the text that a
            file's path gives to its rows.

    Raises:
        InputError: a file cannot be read, no file has a column that is wanted (the message names
            the nearest), or two files hold a column in types that do not go together.
    """
    schemas = {file: _schema(file, file_format, quotes, folder, header) for file in files}
    of_paths: dict[Path, dict[str, str | None]] = {}
    for file, schema in schemas.items():
        named = {name: of_name(file, way, name) for name, way in (file_columns or {}).items()}
        own = next((name for name in named if name in schema), None)
        if own is not None:
            raise InputError(f"{file}: has a column {own!r} of its own; give file_columns another")
        keys = {name: value for name, value in hive_keys(file).items() if name not in schema}
        of_paths[file] = keys | named
    both = [*schemas.values(), *of_paths.values()]
    names = list(dict.fromkeys(name for one in both for name in one))
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
            raise InputError(f"{file}: its header contains the column {twice!r} twice")
    types = {name: _common_type(name, schemas, of_paths, file_format) for name in columns}
    return Tables(list(files), file_format, quotes, folder, schemas, types, header, of_paths)


def read_tables(
    files: Sequence[Path],
    file_format: str,
    wanted: Iterable[str],
    also: Callable[[str], bool],
    quotes: str = "checked",
    header: Sequence[str] | None = None,
) -> list[pl.DataFrame]:
    """Each file's rows, in memory; see :func:`open_tables`. All frames have the same columns and
    types.

    Raises:
        InputError: as :func:`open_tables`.
    """
    with TemporaryDirectory(dir=scratch()) as folder:
        tables = open_tables(files, file_format, wanted, also, quotes, Path(folder), header)
        of_file = [[pl.DataFrame(schema=tables.types)] for _ in files]
        for index, frame in tables.batches():
            of_file[index].append(frame)
    return [pl.concat(frames) for frames in of_file]


def _schema(
    file: Path, file_format: str, quotes: str, folder: Path, header: Sequence[str] | None
) -> dict[str, pl.DataType]:
    try:
        if file_format in ("parquet", "arrow"):
            return dict(_scan(file, file_format).collect_schema())
        if file_format == "jsonl":
            with uncompressed(file, folder) as text:
                # All lines decide the types: an id may first be null, or be a float once
                return dict(pl.scan_ndjson(text, infer_schema_length=None).collect_schema())
        first = next(lines(file), b"")
        found = pl.read_csv(
            first + b"\n",
            has_header=header is None,
            n_rows=0 if header is None else 1,
            separator=SEPARATORS[file_format],
            infer_schema=False,
            quote_char=None if quotes == "no" else '"',
            raise_if_empty=header is None,
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(file, file_format, error) from error
    if header is None:
        return dict(found.schema)
    if first and found.width != len(header):
        raise InputError(
            f"{file}: its first line has {found.width} fields, but header names {len(header)}"
        )
    return dict.fromkeys(header, pl.String())


def _check_lines(
    file: Path, text: Path, separator: bytes, width: int, rows: int, quotes: str, names: int
) -> None:
    """Check what the reader passes over: rows with too few fields, and quotes that swallow lines.

    Args:
        names: lines of names at the start, 1 or 0.

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
    count = ends + (last != b"\n") - names
    if quotes == "checked" and quoted and count - blank > rows:
        raise InputError(
            f"{file}: {count:,} lines are {rows:,} rows, since quotes span lines; set quotes: no "
            f"if they are plain characters, quotes: yes if fields hold line ends"
        )
    if (quoted and quotes != "no") or separators >= (count + names) * (width - 1):
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
    name: str,
    schemas: Mapping[Path, Mapping[str, pl.DataType]],
    of_paths: Mapping[Path, Mapping[str, str | None]],
    file_format: str,
) -> pl.DataType:
    """The type that holds the column ``name`` of every file; where they differ, one that is all
    null decides nothing. What a path says is text."""
    of_path = next((file for file, columns in of_paths.items() if name in columns), None)
    found: pl.DataType = pl.Null() if of_path is None else pl.String()
    types = {file: schema[name] for file, schema in schemas.items() if name in schema}
    differ = len(set(types.values())) > 1 or (of_path is not None and len(types) > 0)
    first = next(iter(types)) if of_path is None else of_path
    for file, dtype in types.items():
        if differ and file_format in ("parquet", "arrow") and _all_null(file, file_format, name):
            continue
        wider = _wider(found, dtype)
        if wider is None:
            raise InputError(
                f"{file}: column {name!r} holds {dtype}, but {found} in {first}; give both one type"
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
    """The type that can hold the values of both unchanged; None if there is none."""
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
