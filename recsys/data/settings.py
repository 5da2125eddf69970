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
OUTPUT_NAMES = ("serving", "distillation", "adapted", "peer")  # a model's outputs beside tasks
LONGEST_NAME = 100  # of a data set; file systems allow 255 bytes


def _checked_task(name: str) -> str:
    if name in (MAIN_TASK, *OUTPUT_NAMES):
        raise ValueError(f"{name!r} is not free as the name of a further task; give another")
    return name


TaskName = Annotated[str, Field(pattern=TASK_PATTERN), AfterValidator(_checked_task)]


class DriftSettings(Settings):
    """How far a window may differ from the mean of earlier windows before ingest stops; null: no
    limit. Differences that chance explains do not count.

    Attributes:
        base_rate: factor by which the mean label may rise or fall.
        missing: how much a feature's share of missing values may change.
        distinct: factor by which a feature's distinct ids may grow, beyond what more rows explain.
        unknown: largest share of values that a vocabulary may not know.
    """

    base_rate: Annotated[float, Field(gt=1)] | None = None
    missing: Annotated[float, Field(gt=0, le=1)] | None = None
    distinct: Annotated[float, Field(gt=1)] | None = None
    unknown: Annotated[float, Field(ge=0, le=1)] | None = None


class DataSettings(Settings):
    """Which log to read, and how it is cut into windows.

    Dense features are standardised by earlier windows, each of which counts half as much as the one
    ``dense_half_life_windows`` later, and then clipped.

    Attributes:
        dataset: name of a data set's description (:class:`DatasetSettings`).
        root: folder that the relative paths of real logs start from.
        window_hours: length of a window; at least a minute.
        max_windows: how many windows to read; null: all.
        rows_per_part: rows per Parquet file; limits the loader's memory.
        memory_gb: memory for reading and sorting tables, in GiB, of all tasks together; the rest
            waits on disk.
        runner: what runs the tasks that read a table.
        parallel_tasks: how many of them run at once; 1: a table is read in the process of ingest.
        quarantine_limit: ingest stops if more than this share of the rows is bad.
        drift: how far windows may differ from each other.
        dense_half_life_windows: after this many windows a window counts half; null: not
            standardised.
        dense_clip: largest standardised value, in deviations.
    """

    dataset: str = "synthetic"
    root: str = "."
    window_hours: Annotated[float, Field(ge=1 / 60)] = 24.0
    max_windows: Annotated[int, Field(gt=0)] | None = None
    rows_per_part: Annotated[int, Field(gt=0)] = 200_000
    memory_gb: Annotated[float, Field(gt=0)] = 2.0
    runner: Literal["threads", "dask", "ray"] = "threads"
    parallel_tasks: Annotated[int, Field(ge=1)] = 1
    quarantine_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    drift: DriftSettings = Field(default_factory=DriftSettings)
    dense_half_life_windows: Annotated[float, Field(gt=0)] | None = 3.0
    dense_clip: Annotated[float, Field(gt=0)] = 5.0


class DomainSettings(Settings):
    """One domain of the generated stream.

    Attributes:
        name: the domain's name, as students refer to it.
        share: its share of all rows.
        base_rate: its click rate.
    """

    name: str
    share: Annotated[float, Field(gt=0, le=1)]
    base_rate: Annotated[float, Field(gt=0, lt=1)]


class ClickHistorySettings(Settings):
    """The list feature ``history`` of the generated stream: the ads that the user clicked last,
    oldest first. Only clicks whose label was known before the event are in it.

    Attributes:
        length: most ads in the list.
        strength: scale of its effect on the logit, which is the largest similarity (cosine of
            planted vectors) of the ad to an ad in the list; 0 for an empty list.
        dimension: size of the planted vectors.
    """

    length: Annotated[int, Field(gt=0)] = 20
    strength: float = 2.0
    dimension: Annotated[int, Field(gt=0)] = 8


class SyntheticSettings(Settings):
    """The generated stream; see :mod:`recsys.data.synthetic` for what each strength scales.
    Strengths are standard deviations of logits.

    Attributes:
        seed: seed of the stream; another seed makes a different log.
        rows: impressions, spread over the windows.
        windows: number of windows.
        chunk_rows: rows generated at a time; limits the memory.
        start: time of the first window, ISO 8601.
        domains: the verticals, with their shares and click rates.
        users: distinct users.
        ads: distinct ads.
        contexts: distinct pages.
        popularity_exponent: exponent of the power law of the ids' frequencies.
        lifetime_share: mean share of the stream in which a user or an ad is active.
        latent_dimension: size of the vectors behind the interactions.
        main_strength: effects of single features.
        within_strength: interactions within groups of features.
        between_strength: interactions between groups of features.
        attribute_strength: interactions of features with few values.
        dense_strength: effects of dense features.
        domain_strength: effects that differ by domain.
        drift: share of the effects' variance that changes over the stream.
        missing_share: share of dense values that are missing.
        conversions: a second task; null: clicks are the only task.
        label_delay_hours: mean of the exponential delay until a label is known.
        label_delay_cap_hours: longest delay.
        history: a list of the user's last clicks; null: none.
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
    """Criteo logs: label, 13 integers, 26 hexadecimal categories, tab-separated, plain or .gz. The
    log has no times, so the order of the rows stands for time.

    Attributes:
        files: paths or patterns, in time order.
        start: time of the first row, ISO 8601.
        rows_per_second: speed of the clock.
        table_rows: rows of each hashed table.
        chunk_rows: rows read at a time.
        negative_rate: share of negatives that the log has kept; see :class:`TableSettings`.
    """

    files: Annotated[list[str], Field(min_length=1)]
    start: Annotated[str, AfterValidator(checked_time)]
    rows_per_second: Annotated[float, Field(gt=0)]
    table_rows: Annotated[int, Field(gt=1)]
    chunk_rows: Annotated[int, Field(gt=0)]
    negative_rate: Rate | None = None


class TimeSettings(MomentSettings):
    """The column of event times; see :class:`MomentSettings`.

    Attributes:
        column: the log's column with the time of the event.
        unit: unit of a number; datetime: a time type or text.
        format: format of text, as in strptime; null: ISO 8601.
        zone: time zone of times without an offset, such as Europe/Paris; null: UTC.
        earliest: earlier rows are bad.
        latest: rows from this time on are bad.
        label_delay_s: seconds after its event at which a row's label is known, if ``label_time`` is
            not given.
    """

    label_delay_s: Annotated[float, Field(ge=0)] = 0.0


class RowClockSettings(Settings):
    """The order of the rows, file by file, as the clock of a log without times. Rows that are
    filtered out or bad count too. A row's label is known at once.

    Attributes:
        rows_per_window: rows that make a window.
        start: time of the first window.
    """

    rows_per_window: Annotated[int, Field(gt=0)]
    start: Annotated[str, AfterValidator(checked_time)] = "2024-01-01"


class LabelSettings(Settings):
    """A column of labels: 1, true, yes against 0, false, no, or 1 against -1; case does not matter.
    In YAML, the column's name is enough.

    Attributes:
        column: the log's column with the label.
        positive: for a column of numbers: the label is 1 from this number on (1 for counts).
    """

    column: str
    positive: float | None = None


def _named_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


LabelColumn = Annotated[LabelSettings, BeforeValidator(_named_column)]


class ExplodeSettings(Settings):
    """Impression lists: one example per element of ``shown``, with label 1 if it is in ``clicked``.

    Attributes:
        shown: column with the list of shown items.
        clicked: column with the list of clicked items.
        item: name of the new column with the item.
        separator: what separates the elements of lists as text.
        label_separator: instead of ``clicked``: each element ends in this and its label (MIND's
            ``N1-0 N2-1`` has separator ``" "`` and label_separator ``"-"``).
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
            raise ValueError("label_separator needs separator, which separates the elements")
        return self


class NegativeSettings(Settings):
    """Sampled negatives for a log that has only clicks. They are drawn in proportion to the items'
    recent clicks, and never include an item already clicked in the same session.

    Attributes:
        item: column of the clicked item.
        session: column of the session.
        per_click: negatives per click.
        popularity_hours: how many full hours of clicks before the event decide the proportions.
        seed: seed of the draw.
    """

    item: str
    session: str
    per_click: Annotated[int, Field(gt=0)]
    popularity_hours: Annotated[int, Field(gt=0)]
    seed: int


class CounterSettings(Settings):
    """Past-only statistics of the rows that share ``by``, from time bins strictly before the row's
    bin: log1p of clicks and of examples, the smoothed click rate, and log1p of the hours since the
    key was first seen. A click counts from the bin in which its label is known.

    Attributes:
        by: columns whose values identify a key.
        name: prefix of the features' names; default: the columns of ``by`` joined by ``_``.
        bin_minutes: length of a bin; a row sees only complete bins.
        hours: for each entry, the statistics of this many hours.
        examples: whether to count examples, and so click rates, beside clicks.
        prior_rows: rows at ``prior_rate`` that smooth the click rate.
        prior_rate: the click rate of these rows.
    """

    by: Annotated[list[str], Field(min_length=1)]
    name: str | None = None
    bin_minutes: Annotated[float, Field(gt=0)]
    hours: list[Annotated[float, Field(gt=0)]]
    examples: bool = True
    prior_rows: Annotated[float, Field(gt=0)] = 20.0
    prior_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05


class DomainColumnSettings(Settings):
    """The column that holds the domain.

    Attributes:
        column: the log's column whose values name the domain.
        values: domain by raw value, as text.
        other: domain of rows with other values; null: they are bad rows.
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
    """How values become rows of a table. A vocabulary keeps row 0 for missing values and row 1 for
    all values that are not in it. The first window is encoded with its own values. If more values
    are frequent than ``table_rows``, the first ones stay.

    Attributes:
        kind: hash: values are hashed into the table's rows; vocabulary: each value that was
            frequent in earlier windows has its own row.
        min_count: how often a value must occur to get a row in a vocabulary.
    """

    kind: Literal["hash", "vocabulary"] = "hash"
    min_count: Annotated[int, Field(gt=0)] = 10

    @model_validator(mode="after")
    def _hashes_count_nothing(self) -> "EncodingSettings":
        if self.kind == "hash" and "min_count" in self.model_fields_set:
            raise ValueError("min_count needs kind: vocabulary; hashes do not count")
        return self


class CategoricalColumnSettings(Settings):
    """One categorical column and its embedding table.

    Attributes:
        column: the log's column.
        name: name of the feature; default: the column's.
        table_rows: rows of the table, above 1, or auto: for a vocabulary, as many values as can be
            frequent; for hashes, 5 rows per distinct value of the entire log, so that about one
            value in ten shares its row (and up to 10,000 rows if there are few values). The size of
            a table gives no label away.
        kind: id: one value; list: several values in one cell.
        separator: what separates the elements of lists as text.
        encoding: hash or vocabulary.
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
    """A categorical feature of two or more columns, whose values are encoded together; missing if
    one of them is. In YAML, the list of columns is enough.

    Attributes:
        columns: the log's columns.
        name: name of the feature; default: the columns' names joined by ``_x_``.
        table_rows: rows of the table, above 1, or auto, as for a categorical column.
        encoding: hash or vocabulary.
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
        """There is no separator: values are never split."""
        return None


def _listed_columns(value: Any) -> Any:
    return {"columns": value} if isinstance(value, list) else value


Cross = Annotated[CrossSettings, BeforeValidator(_listed_columns)]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    return names


Header = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] | None


def _check_header(header: list[str] | None, file_format: str) -> None:
    if header is not None and file_format not in ("csv", "tsv"):
        raise ValueError(f"header is for csv and tsv; files of {file_format} name their columns")


def _checked_expression(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"expected one group in parentheses, got {groups}")
    return text


class HistorySettings(Settings):
    """A list feature: the last items that the row's user clicked, oldest first. Only clicks whose
    label was known before the row's event are in it.

    Attributes:
        name: name of the feature.
        user: column of the user.
        item: column of the item.
        length: most items in the list.
        table_rows: rows of its table; with the number of ``item``, or auto, both have the same ids.
    """

    name: str = "history"
    user: str
    item: str
    length: Annotated[int, Field(gt=0)]
    table_rows: TableRows


class JoinSettings(Settings):
    """A side table (ads, users, conversions), joined to the log's rows by key. Rows without a match
    have missing values; 1, 1.0 and "1" are one key. Side tables are held in memory. If ``keys``
    include the item of ``explode`` or ``sample_negatives``, ``columns`` and ``filter`` of the log
    cannot use the joined columns.

    Attributes:
        files: paths or patterns of the side table.
        file_format: format of the side table.
        quotes: checked: quotes may hold separators and every row is checked; yes: without the
            check; no: quotes are plain characters.
        header: column names of CSV and TSV without a header line.
        keys: the side table's key column by the log's column.
        columns: columns to join.
        derived: further columns by name, as SQL expressions over a row of the side table.
        prefix: put before the names of the joined columns.
        matched: name of a new column that says whether the key was found; it is the label if the
            side table lists conversions.
        time: column with the time from which a row of the side table is valid; a row of the log
            gets the newest one not after its event. null: each key may have only one row, and you
            must judge whether it knows the future.
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


class CandidateSettings(Settings):
    """A table of candidates: examples that were never shown and have no label. The teacher scores
    them, and students may train on these scores; nothing else sees them.

    Their files have the columns, format and types of the log's, without label columns (ignored if
    present).

    Attributes:
        files: paths, patterns or URLs.
    """

    files: Annotated[list[str], Field(min_length=1)]


class TableSettings(Settings):
    """Any CSV, TSV, JSON lines, Parquet or Arrow log, described column by column. Lists keep their
    order, by convention oldest to newest.

    Exactly one of ``label``, ``explode`` and ``sample_negatives`` makes the labels. Some columns
    are made if a feature asks for them and the log has none of that name: event_hour and
    event_weekday (UTC; Monday is 0) and, after ``explode``, shown_count. Folders called key=value
    make columns of text.

    Attributes:
        files: paths, patterns or URLs; ** matches nested folders.
        file_format: format of all files.
        quotes: for CSV and TSV. checked: fields in double quotes may hold separators, and a file in
            which one spans lines is refused; yes: fields may span lines; no: quotes are plain
            characters.
        header: column names of CSV and TSV files without a header line.
        file_columns: text columns by name, each a regular expression with one group, applied to the
            files' paths.
        joins: side tables.
        columns: derived columns by name, as SQL expressions over one row.
        filter: SQL condition; rows for which it is not true are left out.
        time: column of the event's time.
        row_clock: replaces ``time`` if the log has no times.
        label_time: column with the time at which a row's label became known, such as a
            conversion's; where it is empty, ``time.label_delay_s`` after the event.
        attribution_window_s: with ``label_time``: every row's label is known this long after its
            event, and a later positive counts as none.
        negative_rate: share of the rows with label 0 that the log has kept, for all or per domain
            (1 where omitted); all rows with label 1 are there. Served probabilities are corrected
            for it.
        weight: column of numbers above 0: how often a row counts in training, reports and
            baselines; 1/p for a row that was kept with probability p. Served probabilities then
            need no correction.
        label: column of the main task's label.
        labels: columns of further tasks' labels by task: 0, 1 or empty (no label).
        null_values: texts that mean a missing value in every column, besides empty and blank ones.
        group: column within which grouped AUC is computed; null: the raw row (an impression, or a
            click with its sampled negatives).
        domain: column of the domain.
        dense: numeric columns.
        categorical: columns of ids or lists.
        crosses: features of several columns together.
        explode: lists of shown items, one example per item.
        sample_negatives: draws negatives for a log that has only clicks.
        counters: past-only statistics.
        history: a list feature of the user's last clicks.
        candidates: examples that were never shown, to be scored by the teacher.
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
    null_values: list[str] = Field(default=[*NULL_VALUES])
    group: str | None = None
    domain: DomainColumnSettings | None = None
    dense: list[str] = Field(default_factory=list)
    categorical: list[CategoricalColumnSettings]
    crosses: list[Cross] = Field(default_factory=list)
    explode: ExplodeSettings | None = None
    sample_negatives: NegativeSettings | None = None
    counters: list[CounterSettings] = Field(default_factory=list)
    history: HistorySettings | None = None
    candidates: CandidateSettings | None = None

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
            raise ValueError("label_time and joins with time need time; row_clock has no hours")
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
        if self.candidates is not None and (self.label is None or self.time is None):
            raise ValueError(
                "candidates need a log with time and label; they have no lists of shown items, no "
                "sampled negatives and no row_clock"
            )
        if not self.categorical and self.history is None:
            raise ValueError("categorical: give at least one column; models need at least one")
        if self.negative_rate is not None and (self.labels or self.sample_negatives is not None):
            raise ValueError(
                "negative_rate is for a log with one task and its own negatives; leave out labels "
                "and sample_negatives"
            )
        if self.negative_rate is not None and self.weight is not None:
            raise ValueError(
                "negative_rate and weight both make up for rows that were left out; give one"
            )
        if self.labels and self.label is None:
            raise ValueError(
                "labels needs label: explode and sample_negatives have no further tasks"
            )
        return self


class DatasetSettings(Settings):
    """A log: its format, and the section of that name.

    Attributes:
        format: which of the sections below describes the log.
        synthetic: the generated stream.
        criteo: a log in Criteo's layout.
        table: any other log, column by column.
    """

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
