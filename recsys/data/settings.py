"""Settings of the data stage: which log, described how."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from recsys.config import InputError, Settings, load_settings
from recsys.data.conversions import ConversionSettings
from recsys.data.schema import MAIN_TASK

TASK_PATTERN = r"^[a-z][a-z0-9_]*$"
OUTPUT_NAMES = ("serving", "distillation", "adapted", "peer")  # a model's outputs that are no task


def _checked_task(name: str) -> str:
    if name in (MAIN_TASK, *OUTPUT_NAMES):
        raise ValueError(f"{name!r} is not free as the name of a further task; give another")
    return name


TaskName = Annotated[str, Field(pattern=TASK_PATTERN), AfterValidator(_checked_task)]


class DataSettings(Settings):
    """Which log, and how it is cut into windows.

    ``dataset`` names a description (:class:`DatasetSettings`); ``root`` is the folder that the
    relative paths of real logs are under. Ingest stops when more than ``quarantine_limit`` of the
    rows are bad.

    Dense features are standardised by the windows before, each counting half as much as the one
    ``dense_half_life_windows`` after it, and clipped to ``dense_clip`` deviations; null: left as
    they are.
    """

    dataset: str = "synthetic"
    root: str = "."
    window_hours: Annotated[float, Field(gt=0)] = 24.0
    max_windows: Annotated[int, Field(gt=0)] | None = None
    rows_per_part: Annotated[int, Field(gt=0)] = 200_000
    quarantine_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    dense_half_life_windows: Annotated[float, Field(gt=0)] | None = 3.0
    dense_clip: Annotated[float, Field(gt=0)] = 5.0


class DomainSettings(Settings):
    """One domain of the generated stream."""

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
    main_strength: float = 0.6
    within_strength: float = 0.3
    between_strength: float = 0.15
    attribute_strength: float = 2.5
    dense_strength: float = 0.5
    domain_strength: float = 0.35
    drift: Annotated[float, Field(ge=0)] = 0.3
    missing_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    conversions: ConversionSettings | None = None
    label_delay_hours: Annotated[float, Field(ge=0)] = 4.0
    label_delay_cap_hours: Annotated[float, Field(ge=0)] = 24.0
    history: ClickHistorySettings | None = None


class CriteoSettings(Settings):
    """Criteo logs: label, 13 integers, 26 hexadecimal categories, tab-separated, plain or .gz.

    The log holds no times: the order of the rows is time. ``rows_per_second`` fixes the clock.
    """

    files: list[str]
    start: str
    rows_per_second: Annotated[float, Field(gt=0)]
    table_rows: Annotated[int, Field(gt=1)]
    chunk_rows: Annotated[int, Field(gt=0)]


class TimeSettings(Settings):
    """The column of event times; ``unit`` is s, ms, us for numbers, datetime for dates or ISO
    text."""

    column: str
    unit: Literal["s", "ms", "us", "datetime"]
    label_delay_s: Annotated[float, Field(ge=0)] = 0.0


class ExplodeSettings(Settings):
    """Impression lists: one example per element of ``shown``, label 1 if it is in ``clicked``."""

    shown: str
    clicked: str
    item: str


class NegativeSettings(Settings):
    """Negatives for a log of clicks only.

    ``per_click`` items a click are drawn in proportion to the clicks of the ``popularity_hours``
    whole hours before, never an item already clicked in the same ``session`` up to that time.
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
    hours since it was first seen. A click counts from the bin in which its label is known.
    """

    by: list[str]
    bin_minutes: Annotated[float, Field(gt=0)]
    hours: list[Annotated[float, Field(gt=0)]]
    examples: bool = True
    prior_rows: Annotated[float, Field(gt=0)] = 20.0
    prior_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05


class DomainColumnSettings(Settings):
    """The column that holds the domain; ``values`` maps its raw value, as text, to a domain name.

    Rows of another value get the domain ``other``; without it they are bad rows.
    """

    column: str
    values: dict[str, str]
    other: str | None = None


class CategoricalColumnSettings(Settings):
    """One categorical column, hashed into ``table_rows`` ids."""

    column: str
    table_rows: Annotated[int, Field(gt=1)]
    kind: Literal["id", "list"] = "id"


class HistorySettings(Settings):
    """A list feature ``name``: the last ``length`` values of ``item`` that the row's ``user``
    clicked, oldest first.

    Only clicks whose label was known before the row's event. ``table_rows`` as for a categorical
    column; the one of ``item`` gives both the same ids.
    """

    name: str = "history"
    user: str
    item: str
    length: Annotated[int, Field(gt=0)]
    table_rows: Annotated[int, Field(gt=1)]


class TableSettings(Settings):
    """Any CSV, TSV or Parquet log, described column by column. Lists keep their order, oldest to
    newest by convention.

    Exactly one of ``label``, ``explode`` and ``sample_negatives`` makes the labels. ``labels``:
    columns of further tasks' labels by the task's name, 0, 1 or empty (this row has none).
    ``group`` is the column that grouped AUC is computed within; null: the raw row (an impression,
    or a click with its sampled negatives). Derived columns: event_hour (UTC) and, after
    ``explode``, shown_count. The whole log is held in memory.
    """

    files: list[str]
    file_format: Literal["csv", "tsv", "parquet"]
    time: TimeSettings
    label: str | None = None
    labels: dict[TaskName, str] = Field(default_factory=dict)
    group: str | None = None
    domain: DomainColumnSettings | None = None
    dense: list[str] = Field(default_factory=list)
    categorical: list[CategoricalColumnSettings]
    explode: ExplodeSettings | None = None
    sample_negatives: NegativeSettings | None = None
    counters: list[CounterSettings] = Field(default_factory=list)
    history: HistorySettings | None = None

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> "TableSettings":
        given = [
            self.label is not None,
            self.explode is not None,
            self.sample_negatives is not None,
        ]
        if sum(given) != 1:
            raise ValueError("give exactly one of label, explode and sample_negatives")
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
    if "/" in settings.dataset:
        raise InputError(
            f"{settings.where('dataset')}: expected the name of a file of {datasets_dir}, got "
            f"{settings.dataset!r}"
        )
    return load_settings(datasets_dir / f"{settings.dataset}.yaml", DatasetSettings)
