"""Settings of the data stage: which log, described how."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from recsys.config import InputError, Settings, load_settings
from recsys.data.conversions import ConversionSettings
from recsys.data.raw_values import NULL_VALUES, MomentSettings, checked_time
from recsys.data.schema import MAIN_TASK

TASK_PATTERN = r"^[a-z][a-z0-9_]*$"
OUTPUT_NAMES = ("serving", "distillation", "adapted", "peer")  # a model's outputs that are no task
LONGEST_NAME = 100  # of a data set; file systems end at 255 bytes


def _checked_task(name: str) -> str:
    if name in (MAIN_TASK, *OUTPUT_NAMES):
        raise ValueError(f"{name!r} is not free as the name of a further task; give another")
    return name


TaskName = Annotated[str, Field(pattern=TASK_PATTERN), AfterValidator(_checked_task)]


class DriftSettings(Settings):
    """How far a window may be from the mean of those before; beyond it, ingest stops. null: any.

    ``base_rate``: by which factor the mean label may rise or fall. ``missing``: by how much a
    feature's share of missing values may change. ``distinct``: by which factor a feature's distinct
    ids may grow, beyond what more rows explain. ``unknown``: the largest share of a vocabulary's
    values that it does not know. Shares that chance explains do not count.
    """

    base_rate: Annotated[float, Field(gt=1)] | None = None
    missing: Annotated[float, Field(gt=0, le=1)] | None = None
    distinct: Annotated[float, Field(gt=1)] | None = None
    unknown: Annotated[float, Field(ge=0, le=1)] | None = None


class DataSettings(Settings):
    """Which log, and how it is cut into windows.

    ``dataset`` names a description (:class:`DatasetSettings`); ``root`` is the folder that the
    relative paths of real logs are under. A window is at least a minute long. Ingest stops when
    more than ``quarantine_limit`` of the rows are bad. ``memory_gb`` bounds what tables are read
    and sorted with, in GiB; what does not fit waits on disk. ``drift`` bounds how windows may
    differ.

    Dense features are standardised by the windows before, each counting half as much as the one
    ``dense_half_life_windows`` after it, and clipped to ``dense_clip`` deviations; null: left as
    they are.
    """

    dataset: str = "synthetic"
    root: str = "."
    window_hours: Annotated[float, Field(ge=1 / 60)] = 24.0
    max_windows: Annotated[int, Field(gt=0)] | None = None
    rows_per_part: Annotated[int, Field(gt=0)] = 200_000
    memory_gb: Annotated[float, Field(gt=0)] = 2.0
    quarantine_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    drift: DriftSettings = Field(default_factory=DriftSettings)
    dense_half_life_windows: Annotated[float, Field(gt=0)] | None = 3.0
    dense_clip: Annotated[float, Field(gt=0)] = 5.0


class DomainSettings(Settings):
    """One domain of the generated stream.

    Attributes:
        name: of the domain, as students name it.
        share: of all rows.
        base_rate: of clicks in this domain.
    """

    name: str
    share: Annotated[float, Field(gt=0, le=1)]
    base_rate: Annotated[float, Field(gt=0, lt=1)]


class ClickHistorySettings(Settings):
    """The list feature ``history`` of the generated stream: the last ``length`` ads the user
    clicked, oldest first.

    Only clicks whose label was known before the event. ``strength`` scales what it adds to the
    logit: the largest similarity of the ad to one of them, cosines of planted vectors of
    ``dimension``; nothing without a click.
    """

    length: Annotated[int, Field(gt=0)] = 20
    strength: float = 2.0
    dimension: Annotated[int, Field(gt=0)] = 8


class SyntheticSettings(Settings):
    """The generated stream; see :mod:`recsys.data.synthetic` for what each strength scales.

    ``attribute_strength`` is that of the products of features of few values.

    ``rows`` are spread over ``windows`` windows. Times are in hours, strengths in logits (standard
    deviation). ``chunk_rows`` bounds the memory. Without ``conversions`` clicks are the only task.
    """

    seed: int = 20240101
    rows: Annotated[int, Field(gt=0)] = 240_000
    windows: Annotated[int, Field(gt=0)] = 12
    chunk_rows: Annotated[int, Field(gt=0)] = 100_000
    start: str = "2024-01-01T00:00:00"
    domains: list[DomainSettings] = Field(
        default=[
            DomainSettings(name="feed", share=0.4, base_rate=0.22),
            DomainSettings(name="search", share=0.25, base_rate=0.25),
            DomainSettings(name="video", share=0.35, base_rate=0.18),
        ]
    )
    users: Annotated[int, Field(gt=1)] = 2_000
    ads: Annotated[int, Field(gt=1)] = 600
    contexts: Annotated[int, Field(gt=1)] = 500
    popularity_exponent: Annotated[float, Field(gt=0)] = 0.9
    lifetime_share: Annotated[float, Field(gt=0)] = 0.6
    latent_dimension: Annotated[int, Field(gt=0)] = 4
    main_strength: float = 0.8
    within_strength: float = 0.9
    between_strength: float = 0.25
    attribute_strength: float = 1.0
    dense_strength: float = 0.5
    domain_strength: float = 0.35
    drift: Annotated[float, Field(ge=0)] = 0.3
    missing_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    conversions: ConversionSettings | None = None
    label_delay_hours: Annotated[float, Field(ge=0)] = 4.0
    label_delay_cap_hours: Annotated[float, Field(ge=0)] = 24.0
    history: ClickHistorySettings | None = None


Rate = Annotated[float, Field(gt=0, le=1)]


class CriteoSettings(Settings):
    """Criteo logs: label, 13 integers, 26 hexadecimal categories, tab-separated, plain or .gz.

    The log holds no times: the order of the rows is time. ``rows_per_second`` fixes the clock.
    ``negative_rate``: see :class:`TableSettings`.

    Attributes:
        files: paths or patterns, in the order of time.
        start: time of the first row, ISO 8601.
        table_rows: of every hashed table.
        chunk_rows: rows read at a time.
    """

    files: Annotated[list[str], Field(min_length=1)]
    start: Annotated[str, AfterValidator(checked_time)]
    rows_per_second: Annotated[float, Field(gt=0)]
    table_rows: Annotated[int, Field(gt=1)]
    chunk_rows: Annotated[int, Field(gt=0)]
    negative_rate: Rate | None = None


class TimeSettings(MomentSettings):
    """The column of event times, as :class:`MomentSettings`.

    A row's label is known ``label_delay_s`` after its event, where no ``label_time`` says when.

    Attributes:
        column: of the log that holds the time of a row.
        unit: of a number; datetime: a time type or text.
        format: of text, as strptime writes it; null: ISO 8601.
        zone: of times that name none, as Europe/Paris; null: UTC.
        earliest: a row before it is bad.
        latest: a row after it is bad.
    """

    label_delay_s: Annotated[float, Field(ge=0)] = 0.0


class RowClockSettings(Settings):
    """The order of the rows as the clock, for logs without times: ``rows_per_window`` rows, in the
    order of the files, make a window; the first one is that of ``start``.

    Rows that are filtered out or bad count. A row's label is known at once.
    """

    rows_per_window: Annotated[int, Field(gt=0)]
    start: Annotated[str, AfterValidator(checked_time)] = "2024-01-01"


class LabelSettings(Settings):
    """A column of labels: 1, true, yes against 0, false, no, or 1 against -1; case does not matter.

    In YAML the column's name alone will do.

    ``positive``: the column holds numbers, and the label is 1 from this one on (1 for counts).

    Attributes:
        column: of the log that holds the label.
    """

    column: str
    positive: float | None = None


def _named_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


LabelColumn = Annotated[LabelSettings, BeforeValidator(_named_column)]


class ExplodeSettings(Settings):
    """Impression lists: one example per element of ``shown``, label 1 if it is in ``clicked``.

    Lists as text are split at ``separator``. With ``label_separator`` there is no ``clicked``: each
    element ends in it and its label (MIND: ``N1-0 N2-1``, separator ``" "``, label_separator
    ``"-"``). ``item`` names the new column.
    """

    shown: str
    clicked: str | None = None
    item: str
    separator: Annotated[str, Field(min_length=1)] | None = None
    label_separator: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_source_of_clicks(self) -> "ExplodeSettings":
        if (self.clicked is None) == (self.label_separator is None):
            raise ValueError("give exactly one of clicked and label_separator")
        if self.label_separator is not None and self.separator is None:
            raise ValueError("label_separator needs separator: which the elements stand apart by")
        return self


class NegativeSettings(Settings):
    """Negatives for a log of clicks only.

    ``per_click`` items per click are drawn in proportion to the clicks of the ``popularity_hours``
    whole hours before, never an item already clicked in the same ``session`` up to that time.

    Attributes:
        item: column of the item that was clicked.
        seed: of the draw; another seed draws other negatives.
    """

    item: str
    session: str
    per_click: Annotated[int, Field(gt=0)]
    popularity_hours: Annotated[int, Field(gt=0)]
    seed: int


class CounterSettings(Settings):
    """Past-only statistics of the rows that share ``by``, from time bins strictly before the row's
    bin.

    Per entry of ``hours``: log1p of its clicks and, with ``examples``, log1p of its examples and
    its smoothed click rate (``prior_rows`` rows at ``prior_rate`` are added); and log1p of the
    hours since it was first seen. A click counts from the bin in which its label is known. The
    features' names start with ``name``, by default the columns ``by`` joined by ``_``.

    Attributes:
        bin_minutes: counts are kept by bins of this length; a row sees complete bins only.
    """

    by: Annotated[list[str], Field(min_length=1)]
    name: str | None = None
    bin_minutes: Annotated[float, Field(gt=0)]
    hours: list[Annotated[float, Field(gt=0)]]
    examples: bool = True
    prior_rows: Annotated[float, Field(gt=0)] = 20.0
    prior_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05


class DomainColumnSettings(Settings):
    """The column that holds the domain; ``values`` maps its raw value, as text, to a domain name.

    Rows of another value get the domain ``other``; without it they are bad rows.

    Attributes:
        column: of the log whose values name the domain.
    """

    column: str
    values: dict[str, str]
    other: str | None = None


def _checked_rows(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 1):
        return value
    raise ValueError("expected a whole number above 1, or auto")


TableRows = Annotated[int | Literal["auto"], PlainValidator(_checked_rows)]


class EncodingSettings(Settings):
    """How values become rows of a table: by their hash, or by a ``vocabulary`` of those that were
    met at least ``min_count`` times in the windows before.

    A vocabulary keeps row 0 for missing values and row 1 for all that are not in it; the first
    window, which has none before it, is encoded with its own. Where more values than ``table_rows``
    are frequent the first ones stay.

    Attributes:
        kind: hash: ids are hashed into the table's rows; vocabulary: a row per value seen often
            enough.
    """

    kind: Literal["hash", "vocabulary"] = "hash"
    min_count: Annotated[int, Field(gt=0)] = 10

    @model_validator(mode="after")
    def _hashes_count_nothing(self) -> "EncodingSettings":
        if self.kind == "hash" and "min_count" in self.model_fields_set:
            raise ValueError("min_count needs kind: vocabulary; hashes count nothing")
        return self


class CategoricalColumnSettings(Settings):
    """One categorical column, encoded into ``table_rows`` ids.

    ``auto``: of a vocabulary as many as can be frequent; of hashes 5 for each distinct value of the
    whole log, so that about one value in ten shares its id, and more, up to 10,000, where there are
    few; the size of a table tells no label. ``name`` of the feature is that of the column by
    default. Lists as text are split at ``separator``.

    Attributes:
        column: of the log, by its own name.
        kind: id: one value; list: several values in one cell.
    """

    column: str
    name: str | None = None
    table_rows: TableRows
    kind: Literal["id", "list"] = "id"
    separator: Annotated[str, Field(min_length=1)] | None = None
    encoding: EncodingSettings = Field(default_factory=EncodingSettings)

    @property
    def feature(self) -> str:
        """The feature's name."""
        return self.column if self.name is None else self.name

    @property
    def columns(self) -> list[str]:
        """The one column."""
        return [self.column]


class CrossSettings(Settings):
    """A categorical feature of two or more ``columns``, whose values are encoded together; missing
    where one of them is.

    In YAML the list of columns alone will do. ``name`` of the feature is theirs joined by ``_x_``
    by default.

    Attributes:
        table_rows: rows of the crossed table; auto: by the pairs seen in the first window.
    """

    columns: Annotated[list[str], Field(min_length=2)]
    name: str | None = None
    table_rows: TableRows = "auto"
    encoding: EncodingSettings = Field(default_factory=EncodingSettings)

    @property
    def feature(self) -> str:
        """The feature's name."""
        return "_x_".join(self.columns) if self.name is None else self.name

    @property
    def kind(self) -> Literal["id"]:
        """One id per example."""
        return "id"

    @property
    def separator(self) -> None:
        """Nothing is split."""
        return None


def _listed_columns(value: Any) -> Any:
    return {"columns": value} if isinstance(value, list) else value


Cross = Annotated[CrossSettings, BeforeValidator(_listed_columns)]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("two columns have one name")
    return names


Header = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] | None


def _check_header(header: list[str] | None, file_format: str) -> None:
    if header is not None and file_format not in ("csv", "tsv"):
        raise ValueError(f"header is for csv and tsv; files of {file_format} name their columns")


def _checked_expression(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"expected one group in parentheses, got {groups}")
    return text


class HistorySettings(Settings):
    """A list feature ``name``: the last ``length`` values of ``item`` that the row's ``user``
    clicked, oldest first.

    Only clicks whose label was known before the row's event. ``table_rows`` as for a categorical
    column; the one of ``item`` gives both the same ids, ``auto`` takes it.
    """

    name: str = "history"
    user: str
    item: str
    length: Annotated[int, Field(gt=0)]
    table_rows: TableRows


class JoinSettings(Settings):
    """``columns`` of a side table (ads, users, conversions), joined to the log's rows by key.

    ``keys``: the side table's key column by the log's; 1, 1.0 and "1" are one key. Columns get
    their names, after ``prefix``; rows without their key in the side table have missing values, and
    ``matched`` names a column that says whether it is there (the label, where a side table lists
    what converted). ``time``: the column since when a row of the side table holds; the log's row
    gets the newest not after its event. Without it a key may have one row only, and that it knows
    the future is for you to judge. Where ``keys`` have the item of ``explode`` or
    ``sample_negatives``, ``columns`` and ``filter`` of the table cannot use what is joined. Side
    tables are held in memory; of what ``derived`` makes by SQL expressions of a row (by name, after
    ``prefix``, too), only the results. ``header``: see :class:`TableSettings`.

    Attributes:
        files: paths or patterns of the side table.
        file_format: of the side table.
        quotes: checked: quotes may hold separators and every row is checked; yes: without the
            check; no: quotes are letters.
    """

    files: Annotated[list[str], Field(min_length=1)]
    file_format: Literal["csv", "tsv", "jsonl", "parquet", "arrow"]
    quotes: Literal["checked", "yes", "no"] = "checked"
    header: Header = None
    keys: Annotated[dict[str, str], Field(min_length=1)]
    columns: list[str] = Field(default_factory=list)
    derived: dict[str, str] = Field(default_factory=dict)
    prefix: str = ""
    matched: str | None = None
    time: MomentSettings | None = None

    @property
    def names(self) -> list[str]:
        """The columns that the log gets."""
        joined = [self.prefix + name for name in [*self.columns, *self.derived]]
        return joined + ([self.matched] if self.matched is not None else [])

    @model_validator(mode="after")
    def _joins_something(self) -> "JoinSettings":
        if not self.names:
            raise ValueError("give columns or matched; a join without either does nothing")
        _check_header(self.header, self.file_format)
        return self


class TableSettings(Settings):
    """Any CSV, TSV, JSON lines, Parquet or Arrow log, described column by column. Lists keep their
    order, oldest to newest by convention.

    Exactly one of ``label``, ``explode`` and ``sample_negatives`` makes the labels. ``labels``:
    columns of further tasks' labels by the task's name, 0, 1 or empty (this row has none).
    ``group`` is the column that grouped AUC is computed within; null: the raw row (an impression,
    or a click with its sampled negatives). Columns that are made where a feature asks for them and
    the log has none of that name: event_hour and event_weekday (UTC; Monday is 0) and, after
    ``explode``, shown_count. ``crosses`` are features of several columns together. Texts of
    ``null_values`` are missing values in every column, as are empty and blank ones.

    ``quotes`` of CSV and TSV: a field in double quotes may hold separators; ``checked`` refuses a
    file in which one spans lines, ``yes`` does not, ``no`` takes quotes as plain characters.

    ``joins`` add columns of side tables. ``columns`` are derived by SQL expressions of the log's,
    by name; rows for which the expression ``filter`` is not true are left out. ``label_time``: the
    column of the time from which a row's label is known (a conversion's); where it is empty,
    ``time.label_delay_s`` after the event.

    ``row_clock`` in place of ``time``: the log has no times. ``header``: the names of the columns
    of CSV and TSV that have no line of names. ``file_columns``: columns of text by name, made of
    the files' paths by a regular expression with one group; folders called ``key=value`` make such
    columns by themselves.

    ``attribution_window_s``: after ``label_time``, how long a positive is waited for. Then every
    row's label is known so long after its event, and a positive that comes later is none.

    ``negative_rate``: the share of rows with label 0 that this log has kept, of all or by domain
    (1 for those left out); those with label 1 are all there. Served probabilities are corrected for
    it. ``weight``: a column of numbers above 0 that says how often a row counts, in training,
    reports and baselines; of a row that was kept with probability p, 1 / p. What is learnt is then
    right for all rows, so served probabilities need no correction.

    Attributes:
        files: paths or patterns; ** reaches into folders.
        file_format: of all files.
        dense: numeric columns.
    """

    files: Annotated[list[str], Field(min_length=1)]
    file_format: Literal["csv", "tsv", "jsonl", "parquet", "arrow"]
    quotes: Literal["checked", "yes", "no"] = "checked"
    header: Header = None
    file_columns: dict[str, Annotated[str, AfterValidator(_checked_expression)]] = Field(
        default_factory=dict
    )
    joins: list[JoinSettings] = Field(default_factory=list)
    columns: dict[str, str] = Field(default_factory=dict)
    filter: str | None = None
    time: TimeSettings | None = None
    row_clock: RowClockSettings | None = None
    label_time: MomentSettings | None = None
    attribution_window_s: Annotated[float, Field(gt=0)] | None = None
    negative_rate: Rate | dict[str, Rate] | None = None
    weight: str | None = None
    label: LabelColumn | None = None
    labels: dict[TaskName, LabelColumn] = Field(default_factory=dict)
    null_values: list[str] = Field(default_factory=lambda: list(NULL_VALUES))
    group: str | None = None
    domain: DomainColumnSettings | None = None
    dense: list[str] = Field(default_factory=list)
    categorical: list[CategoricalColumnSettings]
    crosses: list[Cross] = Field(default_factory=list)
    explode: ExplodeSettings | None = None
    sample_negatives: NegativeSettings | None = None
    counters: list[CounterSettings] = Field(default_factory=list)
    history: HistorySettings | None = None

    @property
    def label_columns(self) -> dict[str, LabelSettings]:
        """The column of each task's labels that the log holds, the main task's first."""
        return ({MAIN_TASK: self.label} if self.label is not None else {}) | self.labels

    @model_validator(mode="after")
    def _one_clock(self) -> "TableSettings":
        if (self.time is None) == (self.row_clock is None):
            raise ValueError(
                "give exactly one of time, the column of event times, and row_clock, for a log "
                "without times"
            )
        needs_times = self.label_time is not None or any(one.time is not None for one in self.joins)
        if self.row_clock is not None and needs_times:
            raise ValueError("label_time and joins with time need time; row_clock knows no hours")
        if self.attribution_window_s is not None and (self.label is None or not self.label_time):
            raise ValueError(
                "attribution_window_s needs label and label_time, the time of positives"
            )
        _check_header(self.header, self.file_format)
        return self

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> "TableSettings":
        given = [
            self.label is not None,
            self.explode is not None,
            self.sample_negatives is not None,
        ]
        if sum(given) != 1:
            raise ValueError("give exactly one of label, explode and sample_negatives")
        if not self.categorical and self.history is None:
            raise ValueError("categorical: give at least one column; models look up at least one")
        if self.negative_rate is not None and (self.labels or self.sample_negatives is not None):
            raise ValueError(
                "negative_rate is of a log with one task and its own negatives; leave out labels "
                "and sample_negatives"
            )
        if self.negative_rate is not None and self.weight is not None:
            raise ValueError(
                "negative_rate and weight both make up for rows that were left out; give one"
            )
        if self.labels and self.label is None:
            raise ValueError(
                "labels needs label: explode and sample_negatives know of no further task"
            )
        return self


class DatasetSettings(Settings):
    """A log: its ``format`` and the section of that name."""

    format: Literal["synthetic", "criteo", "table"]
    synthetic: SyntheticSettings | None = None
    criteo: CriteoSettings | None = None
    table: TableSettings | None = None

    @model_validator(mode="after")
    def _has_its_section(self) -> "DatasetSettings":
        if getattr(self, self.format) is None:
            raise ValueError(f"format {self.format} needs the section {self.format!r}")
        return self


def load_dataset(settings: DataSettings, datasets_dir: Path) -> DatasetSettings:
    """The dataset that ``settings`` names, from ``datasets_dir``.

    Raises:
        InputError: there is no such dataset (the message names the nearest) or its file is wrong.
    """
    name = settings.dataset
    if "/" in name or len(name) > LONGEST_NAME:
        raise InputError(
            f"{settings.where('dataset')}: expected the name of a file of {datasets_dir}, got "
            f"{name[:LONGEST_NAME]!r}"
        )
    return load_settings(datasets_dir / f"{settings.dataset}.yaml", DatasetSettings)
