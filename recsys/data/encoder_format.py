"""The format of ``encoder.json``: how raw rows become model inputs. Serving reads it without
polars."""

import hashlib
import io
import json
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from recsys.config import InputError, nearest_hint
from recsys.data.raw_values import NULL_VALUES, MomentSettings
from recsys.data.vocabulary import Step, Vocabulary
from recsys.files import write_atomically

if TYPE_CHECKING:
    from recsys.data.schema import CategoricalFeature

ENCODER_FILE, COUNTERS_FILE = "encoder.json", "counters.npz"
FORMAT_VERSION = 2  # 2 added the values of counters by key
DOMAIN_COLUMN = "domain"  # names a row's domain if no raw column has this name
EVENT_HOUR, EVENT_WEEKDAY = "event_hour", "event_weekday"
HOURS_PER_DAY, DAYS_PER_WEEK = 24, 7
FIRST_WEEKDAY = 3  # 1 January 1970 was a Thursday; Monday is 0
CROSSED = "\x1f"  # separates the texts of a cross

Type = Literal["integer", "number", "boolean", "text", "time"]


@dataclass(frozen=True)
class RawColumn:
    """A column of raw rows that the encoder reads.

    Attributes:
        type: type of its values, or of its lists' elements, in the log; for a text-only log, the
            type that all values can be read as.
        is_list: whether it contains lists.
        is_text: whether the log stores it as text, so that expressions see text.
        optional: whether the column, or single values, may be missing, as in the log.
        origin: ``log`` for a column of the log. The others are made by ingest and given by the
            caller: ``impressions`` (the item and the number of items shown, raw), ``counters``
            (log1p of counts, log of rates, as ingest computes them; looked up if not given) and
            ``history`` (lists of ids, as ingest writes them).
    """

    name: str
    type: Type
    is_list: bool = False
    is_text: bool = False
    optional: bool = False
    origin: Literal["log", "impressions", "counters", "history"] = "log"


@dataclass(frozen=True)
class DenseEncoding:
    """A dense feature ``name`` (its column in a part): the signed log1p of the raw ``column``, or
    the raw values if ``given``."""

    name: str
    column: str
    given: bool = False


@dataclass(frozen=True)
class IdEncoding:
    """A categorical feature ``name``: table rows in [0, ``table_rows``) for the values of
    ``columns``.

    ``way`` is ``hash`` or ``vocabulary`` for canonical texts (several columns' texts are joined),
    or ``id`` if the values are table rows already. Lists as text are split at ``separator``.
    """

    name: str
    columns: list[str]
    table_rows: int
    way: Literal["hash", "vocabulary", "id"] = "hash"
    is_list: bool = False
    separator: str | None = None


@dataclass(frozen=True)
class DomainEncoding:
    """The raw ``column`` of domains: domain names by canonical raw value, and ``other`` for all
    other values."""

    column: str
    values: dict[str, str]
    other: str | None = None


@dataclass(frozen=True)
class ValuesByKey:
    """Ingest's counters as of the end of the log: rows without the raw columns ``names`` get them
    by their values of ``columns``.

    Attributes:
        names: raw columns, in the order of ``values``.
        columns: the columns of the key.
        unseen: the values for a key that is not in the log.
        keys: [K] uint64, ascending: XXH3 of the canonical texts, joined by CROSSED for several
            columns.
        values: [K, len(names)] float32.
        needed: those of ``columns`` that are never missing in the log, so rows must have them.
    """

    names: list[str]
    columns: list[str]
    unseen: list[float]
    keys: NDArray[np.uint64]
    values: NDArray[np.float32]
    needed: list[str] = field(default_factory=list)

    def of(self, hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Values [N, len(names)] for hashes [N] of keys."""
        found = np.tile(np.array(self.unseen, np.float32), (len(hashes), 1))
        if len(self.keys):
            places = np.searchsorted(self.keys, hashes).clip(max=len(self.keys) - 1)
            known = self.keys[places] == hashes
            found[known] = self.values[places[known]]
        return found

    def missing(self, given: Collection[str]) -> list[str]:
        """Those of ``names`` that have to be looked up because they are not ``given``.

        Raises:
            InputError: a needed column of the key is not given either.
        """
        names = [name for name in self.names if name not in given]
        lacking = [name for name in self.needed if name not in given]
        if names and lacking:
            raise InputError(
                f"column {lacking[0]!r} is missing; {names[0]!r} is looked up by it, where it is "
                f"not given"
            )
        return names

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of keys and values; used when they are read, and for the encoder's hash."""
        return hashlib.sha256(self.keys.tobytes() + self.values.tobytes()).hexdigest()

    def described(self) -> dict[str, Any]:
        """Its entry in encoder.json."""
        return {
            "names": self.names,
            "columns": self.columns,
            "unseen": self.unseen,
            "needed": self.needed,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class EncoderFormat:
    """How raw rows become model inputs, as stored on disk.

    Attributes:
        columns: the raw columns that are read.
        dense: dense features in the schema's order; the schema standardises them later.
        ids: categorical features in the schema's order.
        null_values: texts that mean a missing value, besides empty and blank ones.
        derived: SQL expressions over one row, by the name of the derived column, in order of
            evaluation.
        time: the column of event times, if clock features are read.
        clock: the clock features: event_hour (UTC), event_weekday (UTC, Monday is 0).
        stripped: text columns of numbers and times, where blanks around a value are ignored.
        domains: names in the schema's order; ``domain`` says how to find a row's domain.
        vocabularies: vocabularies by feature name.
        examples: a few raw rows per domain.
        counters: values for rows without a counter's features; stored in counters.npz.
    """

    columns: list[RawColumn]
    dense: list[DenseEncoding]
    ids: list[IdEncoding]
    null_values: list[str] = field(default_factory=lambda: list(NULL_VALUES))
    derived: list[tuple[str, str]] = field(default_factory=list)
    time: MomentSettings | None = None
    clock: list[str] = field(default_factory=list)
    stripped: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=lambda: ["all"])
    domain: DomainEncoding | None = None
    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    counters: list[ValuesByKey] = field(default_factory=list)

    def check_columns(self, names: Sequence[str]) -> None:
        """Check that ``names`` include every required column.

        Raises:
            InputError: one is missing; the message names the nearest given name.
        """
        for column in self.columns:
            if not column.optional and column.name not in names:
                raise InputError(
                    f"column {column.name!r} is missing; {nearest_hint(column.name, names)}"
                )

    @cached_property
    def read_names(self) -> list[str]:
        """Names of all columns that are read, including those that may name the domain."""
        domain = [] if self.domain is None else [self.domain.column, DOMAIN_COLUMN]
        return list(dict.fromkeys([*(column.name for column in self.columns), *domain]))

    @property
    def domain_column(self) -> RawColumn | None:
        """The raw column that names a row's domain; None if there is only one domain or an
        expression computes it."""
        if self.domain is None or self.domain.column in dict(self.derived):
            return None
        name = self.domain.column
        read = next((column for column in self.columns if column.name == name), None)
        return read or RawColumn(name, "text", optional=True)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what :meth:`save` writes."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def _text(self) -> str:
        values = asdict(replace(self, counters=[])) | {
            "version": FORMAT_VERSION,
            "time": None if self.time is None else self.time.model_dump(),
            "vocabularies": {
                name: [asdict(step) for step in one.steps]
                for name, one in self.vocabularies.items()
            },
            "counters": [one.described() for one in self.counters],
        }
        return json.dumps(values, indent=1, sort_keys=True) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``encoder.json`` to ``folder`` and, if there are counters, ``counters.npz``."""
        if self.counters:
            arrays: dict[str, NDArray[Any]] = {}
            for place, one in enumerate(self.counters):
                arrays |= {f"keys{place}": one.keys, f"values{place}": one.values}
            packed = io.BytesIO()
            np.savez(packed, allow_pickle=False, **arrays)
            write_atomically(folder / COUNTERS_FILE, packed.getvalue())
        write_atomically(folder / ENCODER_FILE, self._text().encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``encoder.json`` and its counters from ``folder``.

        Raises:
            InputError: it is missing or has another version, or the counters do not belong to it.
        """
        path = folder / ENCODER_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the ingest stage first (towerflow ingest)")
        values = json.loads(path.read_text())
        if values.pop("version") != FORMAT_VERSION:
            raise InputError(f"{path}: of another version; run the ingest stage again")
        time, domain = values["time"], values["domain"]
        return cls(
            **values
            | {
                "columns": [RawColumn(**one) for one in values["columns"]],
                "dense": [DenseEncoding(**one) for one in values["dense"]],
                "ids": [IdEncoding(**one) for one in values["ids"]],
                "derived": [(name, text) for name, text in values["derived"]],
                "time": None if time is None else MomentSettings.model_validate(time),
                "domain": None if domain is None else DomainEncoding(**domain),
                "vocabularies": {
                    name: Vocabulary([Step(**step) for step in steps])
                    for name, steps in values["vocabularies"].items()
                },
                "counters": _read_counters(folder / COUNTERS_FILE, values["counters"]),
            }
        )


def _read_counters(path: Path, described: Sequence[dict[str, Any]]) -> list[ValuesByKey]:
    """The counters that ``encoder.json`` describes, with the values in ``path``."""
    if not described:
        return []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = [
                ValuesByKey(
                    one["names"],
                    one["columns"],
                    one["unseen"],
                    arrays[f"keys{place}"],
                    arrays[f"values{place}"],
                    one["needed"],
                )
                for place, one in enumerate(described)
            ]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is damaged ({error}); run the ingest stage again") from error
    if [one.described() for one in found] != list(described):
        raise InputError(f"{path}: is not that of {ENCODER_FILE}; run the ingest stage again")
    return found


def format_of_ids(
    dense: Sequence[str],
    categorical: Sequence["CategoricalFeature"],
    domains: Sequence[str],
    given: bool = False,
) -> EncoderFormat:
    """An encoder for rows whose categories are table rows already, and whose domain is an index or
    a name in the column ``domain``.

    Args:
        given: whether the dense features are encoded already, too.
    """
    return EncoderFormat(
        columns=[
            *(RawColumn(name, "number", optional=not given) for name in dense),
            *(
                RawColumn(one.name, "integer", one.kind == "list", optional=one.kind == "list")
                for one in categorical
            ),
        ],
        dense=[DenseEncoding(name, name, given) for name in dense],
        ids=[
            IdEncoding(one.name, [one.name], one.num_embeddings, "id", one.kind == "list")
            for one in categorical
        ],
        domains=list(domains),
        domain=DomainEncoding(DOMAIN_COLUMN, {str(i): name for i, name in enumerate(domains)}),
    )
