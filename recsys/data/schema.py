"""What a windows folder holds: features, tables, domains and windows, as written by ingest."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from recsys.config import InputError

SCHEMA_FILE = "schema.json"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class CategoricalFeature:
    """One categorical feature and its own embedding table of ``num_embeddings`` rows.

    ``kind`` is ``"id"`` (one id an example) or ``"list"`` (any number of ids, also ordered sequences).
    """

    name: str
    num_embeddings: int
    kind: str = "id"


@dataclass(frozen=True)
class Window:
    """A slice of event time, [start_ms, end_ms); its folder is ``name``.

    ``max_label_delay_ms`` is the largest label_time - event_time of its examples.
    """

    name: str
    start_ms: int
    end_ms: int
    rows: int
    max_label_delay_ms: int


@dataclass(frozen=True)
class Schema:
    """Features, domains and windows of one data set.

    ``initial_base_rate`` is the mean label of the first window, the only one that a model may
    know before it starts. ``planted_groups`` is the true grouping of the generated stream, by
    feature name, for evaluation only; empty on real logs.
    """

    dataset: str
    dense: list[str]
    categorical: list[CategoricalFeature]
    domains: list[str]
    windows: list[Window]
    initial_base_rate: float
    planted_groups: dict[str, str]

    @property
    def dense_width(self) -> int:
        """Width of the dense input: each feature's value and missing indicator, and the domain as one-hot."""
        return 2 * len(self.dense) + len(self.domains)

    def save(self, windows_dir: Path) -> None:
        """Write ``schema.json`` in ``windows_dir``."""
        (windows_dir / SCHEMA_FILE).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, windows_dir: Path) -> "Schema":
        """Read ``schema.json`` of ``windows_dir``.

        Raises:
            InputError: there is none.
        """
        path = windows_dir / SCHEMA_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the ingest stage first (python -m flows.ingest)")
        values = json.loads(path.read_text())
        values["categorical"] = [CategoricalFeature(**feature) for feature in values["categorical"]]
        values["windows"] = [Window(**window) for window in values["windows"]]
        return cls(**values)
