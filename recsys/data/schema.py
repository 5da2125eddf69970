"""The contents of a windows folder: features, tables, domains and windows, as written by ingest."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.config import InputError
from recsys.data.standardise import Moments, Standard, standards
from recsys.files import check_file, damaged, read_json

SCHEMA_FILE = "schema.json"
MANIFEST_FILE = "manifest.json"
MAIN_TASK = "click"
CANDIDATES_DIR = "candidates"  # in a windows folder: another one, of rows that were never shown
WEIGHT = "weight"  # the column of row weights, if a log has them
REMEDY = "towerflow ingest"


def window_name(start_ms: int) -> str:
    """The name of the window that starts at ``start_ms`` (ms since 1970)."""
    return datetime.fromtimestamp(start_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H-%M")


def task_columns(base: str, tasks: Sequence[str]) -> list[str]:
    """The columns of ``base`` (label, logit, ...) for ``tasks``: ``base`` for the first task,
    ``base_<task>`` for the others."""
    return [base, *(f"{base}_{task}" for task in tasks[1:])]


@dataclass(frozen=True)
class CategoricalFeature:
    """One categorical feature and its own embedding table of ``num_embeddings`` rows.

    ``name`` is the column's; :func:`recsys.data.names.feature_name` gives the user's own. ``kind``
    is ``"id"`` (one id per example) or ``"list"`` (any number of ids, which may be an ordered
    sequence).
    """

    name: str
    num_embeddings: int
    kind: str = "id"


@dataclass(frozen=True)
class Window:
    """A slice of event time, [start_ms, end_ms); its folder is ``name``.

    ``max_label_delay_ms`` is the largest label_time - event_time of its examples. ``dense`` holds
    the moments of its dense features; None if they were not measured.
    """

    name: str
    start_ms: int
    end_ms: int
    rows: int
    max_label_delay_ms: int
    dense: Moments | None = None


@dataclass(frozen=True)
class Schema:
    """Features, domains and windows of one data set.

    ``initial_base_rate`` is the mean label of the first window, the only one that a model may know
    before it starts. ``planted_groups`` is the true grouping of the generated stream, by feature
    name, for evaluation only; it is empty for real logs. ``tasks`` are what is predicted, the main
    one first. Every example has the main task's label; those of the others may be missing.
    ``further_base_rates`` are the other tasks' mean known labels in the first window,
    ``domain_base_rates`` the main task's mean labels by domain.

    Dense features are stored raw and standardised when read, by earlier windows;
    ``dense_half_life_windows`` and ``dense_clip`` say how (None: not at all). ``negative_rates``
    gives, by domain, the share of rows with label 0 that the log has kept; empty means all.
    ``mean_weight`` is the mean weight of the first window's rows, and the rates above are weighted;
    None if rows have no weights. ``serving_standard`` is the standardisation after the last window,
    in an exported schema without windows.
    """

    dataset: str
    dense: list[str]
    categorical: list[CategoricalFeature]
    domains: list[str]
    windows: list[Window]
    initial_base_rate: float
    planted_groups: dict[str, str]
    tasks: list[str] = field(default_factory=lambda: [MAIN_TASK])
    further_base_rates: list[float] = field(default_factory=list)
    domain_base_rates: list[float] = field(default_factory=list)
    dense_half_life_windows: float | None = None
    dense_clip: float = 5.0
    serving_standard: Standard | None = None
    negative_rates: list[float] = field(default_factory=list)
    mean_weight: float | None = None

    @property
    def weight_columns(self) -> list[str]:
        """The column of weights, as a list; empty if rows have none."""
        return [] if self.mean_weight is None else [WEIGHT]

    @property
    def base_rates(self) -> dict[str, float]:
        """Mean label of the first window by task, in the order of the tasks."""
        return dict(
            zip(self.tasks, [self.initial_base_rate, *self.further_base_rates], strict=True)
        )

    def columns(self, base: str, tasks: Sequence[str]) -> list[str]:
        """The columns of these data with ``base`` for ``tasks``; see :func:`task_columns`."""
        names = dict(zip(self.tasks, task_columns(base, self.tasks), strict=True))
        return [names[task] for task in tasks]

    def for_tasks(self, tasks: list[str]) -> "Schema":
        """The schema of a model that learns only ``tasks``, with the first as its main task.

        Raises:
            InputError: a task does not exist in the data or is given twice, or none is given.
        """
        rates = self.base_rates
        unknown = [task for task in tasks if task not in rates]
        if unknown:
            raise InputError(f"task {unknown[0]!r}: the data have {', '.join(self.tasks)}")
        if not tasks or len(set(tasks)) != len(tasks):
            raise InputError(f"tasks: give at least one, each once, got {tasks}")
        further = [rates[task] for task in tasks[1:]]
        return replace(
            self, tasks=list(tasks), initial_base_rate=rates[tasks[0]], further_base_rates=further
        )

    @property
    def dense_width(self) -> int:
        """Width of the dense input: a value and a missing indicator per feature, and the domain as
        one-hot."""
        return 2 * len(self.dense) + len(self.domains)

    def standards(self) -> list[Standard]:
        """The standardisation for each window's dense features, and then the one after the last
        window.

        Empty if they are not standardised.
        """
        moments = [window.dense for window in self.windows if window.dense is not None]
        if self.dense_half_life_windows is None or len(moments) < len(self.windows):
            return []
        return standards(moments, self.dense_half_life_windows, self.dense_clip)

    def for_serving(self) -> "Schema":
        """The schema for a served model: without windows, with the standardisation after the
        last."""
        after = self.standards()
        standard = after[-1] if after else self.serving_standard
        return replace(self, windows=[], planted_groups={}, serving_standard=standard)

    def save(self, windows_dir: Path) -> None:
        """Write ``schema.json`` in ``windows_dir``."""
        (windows_dir / SCHEMA_FILE).write_text(
            json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        )

    @classmethod
    def load(cls, windows_dir: Path) -> "Schema":
        """Read ``schema.json`` of ``windows_dir``.

        Raises:
            InputError: the file is missing or damaged.
        """
        path = windows_dir / SCHEMA_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the ingest stage first (towerflow ingest)")
        try:
            return cls.from_json(read_json(path))
        except (InputError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path, REMEDY, error) from error

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Schema":
        """The schema from the output of ``dataclasses.asdict``."""
        read = dict(values)
        read["categorical"] = [CategoricalFeature(**feature) for feature in values["categorical"]]
        read["windows"] = [_window(window) for window in values["windows"]]
        if values.get("serving_standard") is not None:
            read["serving_standard"] = Standard(**values["serving_standard"])
        return cls(**read)


def _window(values: dict[str, Any]) -> Window:
    read = dict(values)
    if values.get("dense") is not None:
        read["dense"] = Moments(**values["dense"])
    return Window(**read)


def window_parts(windows_dir: Path, window: Window) -> list[Path]:
    """The files of a window, in order, checked against the manifest's hashes once per process.

    Raises:
        InputError: a file is missing or differs from what was written, or the manifest is damaged.
    """
    folder = windows_dir / window.name
    found = sorted(folder.glob("part-*.parquet"))
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():  # windows that somebody made by hand
        if not found:
            raise InputError(f"{folder}: has no data; rebuild it with {REMEDY}")
        return found
    try:
        parts = dict(read_json(manifest)["parts"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise damaged(manifest, REMEDY, error) from error
    for name, digest in parts.items():
        check_file(folder / name, digest, REMEDY)
    return [folder / name for name in sorted(parts)]
