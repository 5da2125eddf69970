"""Predict with an exported ranker, using numpy and ONNX Runtime: raw rows in, probabilities out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.encoder_format import (
    DOMAIN_COLUMN,
    ENCODER_FILE,
    DenseEncoding,
    DomainEncoding,
    EncoderFormat,
    IdEncoding,
    RawColumn,
)
from recsys.files import SUMS_FILE, check_sums, damaged, read_json
from recsys.serving.calibration import UNCALIBRATED, CalibrationMap, map_of, sigmoid
from recsys.serving.export_format import (
    CALIBRATION_FILE,
    CARD_FILE,
    COUNTS_INPUT,
    DENSE_INPUT,
    EMBEDDINGS_INPUT,
    FORMAT_VERSION,
    MODEL_FILE,
    NETWORK_FILE,
    REMEDY,
    WEIGHTS_FILE,
)
from recsys.serving.raw_encoder import (
    Columns,
    Encoded,
    RawEncoder,
    Rows,
    columns_of,
    columns_of_rows,
)
from recsys.serving.tables import Tables

ROWS_AT_ONCE = 16_384  # bounds the memory of a large frame
Probabilities = dict[str, NDArray[np.float64]]
Maps = Mapping[str, Mapping[str, CalibrationMap]]  # by domain and task


class Predictor:
    """Predicts probabilities for raw rows, for each task that the model was trained on.

    Rows are a list of dicts, a dict of lists, or a pandas or polars frame.

    Example::

        predictor = Predictor.load(Path("models/students/feed/distilled/export"))
        probabilities = predictor.predict([{"user_id": 17, "ad_id": "a3", "price": 2.5}])  # [1]
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        encoder: EncoderFormat,
        tables: Tables,
        session: onnxruntime.InferenceSession,
        maps: Maps,
        card: Mapping[str, Any],
    ) -> None:
        schema = description["schema"]
        self.format, self.tables, self.session, self.card = encoder, tables, session, card
        self.domain: str | None = description["domain"]
        self.domains: list[str] = schema["domains"]
        self.tasks: list[str] = schema["tasks"]
        self._schema, self._maps = schema, maps
        self._encoder = RawEncoder(encoder)
        self._sequences: dict[str, int] = description["sequences"]
        self._first_rows: dict[str, int] = description["first_rows"]
        standard = schema.get("serving_standard")
        self._standard = None
        if standard is not None:
            mean, deviation = np.array(standard["mean"]), np.array(standard["deviation"])
            self._standard = mean, deviation, float(standard["clip"])
        place, self._single, self._places = 0, [], {}
        for feature in schema["categorical"]:
            name, width = feature["name"], self._sequences.get(feature["name"], 1)
            self._places[name] = slice(place, place + width)
            if feature["kind"] == "id":
                self._single.append(name)
            place += width
        self._width = place
        self._single_places = [self._places[name].start for name in self._single]
        self._single_rows = np.array([self._first_rows[name] for name in self._single], np.int64)

    @classmethod
    def load(cls, directory: Path, threads: int = 1) -> "Predictor":
        """Load what :func:`recsys.serving.export.export_ranker` wrote.

        Args:
            threads: threads that the network may use per call.

        Raises:
            InputError: ``directory`` does not contain an export, or one that is damaged or has
                another version.
        """
        path = directory / MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected the export folder of a student")
        description = _description(path)
        if not (directory / SUMS_FILE).is_file():
            raise InputError(f"{directory / SUMS_FILE}: is missing; rebuild it with {REMEDY}")
        check_sums(directory, REMEDY)
        encoder = EncoderFormat.load(directory)
        tables = Tables.map(directory / WEIGHTS_FILE)
        return cls(description, encoder, tables, *_above_tables(directory, encoder, threads))

    def changed(self, directory: Path, threads: int = 1) -> "Predictor":
        """A predictor that shares these tables, with everything else from ``directory``; without an
        encoder.json there, it keeps this encoder.

        Raises:
            InputError: the files there have another version, or are for other tables.
        """
        description = _description(directory / MODEL_FILE)
        if description["first_rows"] != self._first_rows:
            raise InputError(f"{directory}: has tables in another layout")
        same = not (directory / ENCODER_FILE).is_file()
        encoder = self.format if same else EncoderFormat.load(directory)
        above = _above_tables(directory, encoder, threads)
        found = Predictor(description, encoder, self.tables, *above)
        if same:
            found._encoder = self._encoder  # with its cache
        return found

    @property
    def needs_domain(self) -> bool:
        """Whether rows must name their domain, because the model serves several."""
        return self.domain is None and len(self.domains) > 1

    @property
    def raw_columns(self) -> list[RawColumn]:
        """The raw columns that are read; a separate domain column comes last."""
        columns, domain = self.format.columns, self.format.domain_column
        if domain is None or domain in columns:
            return columns
        return [*columns, replace(domain, optional=not self.needs_domain)]

    def example_rows(self) -> list[dict[str, Any]]:
        """A few raw rows of the log in the model's domain, with the columns that it reads and does
        not look up itself."""
        rows = [dict(row) for row in self.format.examples]
        columns, count = columns_of(rows, self.format)
        found = self._encoder.domains_of(columns, count) if rows else None
        if found is not None and self.domain is not None:
            own = self.domains.index(self.domain)
            rows = [row for row, place in zip(rows, found, strict=True) if place == own]
        names = [
            column.name
            for column in self.raw_columns
            if column.origin != "counters"
            if column in self.format.columns or self.needs_domain
        ]
        return [{name: row[name] for name in names if name in row} for row in rows]

    def predict(self, rows: Rows, calibrated: bool = True) -> NDArray[np.float64]:
        """Probabilities [N] for the main task; see :meth:`predict_tasks`."""
        return self.predict_tasks(rows, calibrated)[self.tasks[0]]

    def predict_tasks(self, rows: Rows, calibrated: bool = True) -> Probabilities:
        """Probabilities [N] by task, for raw rows with the log's columns and values.

        :attr:`raw_columns` says which columns are read, and which may be left out; others are
        ignored. A value that never occurred in the log is treated as unknown, as in training. The
        domain is given as in the log or by its name.

        Args:
            calibrated: False returns the network's own output, as reported in training.

        Raises:
            InputError: a column is missing, appears twice or has another type than in the log, or a
                row belongs to a domain that the model does not serve.
        """
        return self._predicted(*columns_of(rows, self.format), self._encoder, calibrated)

    def rank(
        self,
        shared: Mapping[str, Any],
        candidates: Sequence[Mapping[str, Any]],
        calibrated: bool = True,
    ) -> Probabilities:
        """Probabilities [N] by task for N ``candidates`` of one user and context, whose ``shared``
        columns are encoded once.

        Raises:
            InputError: as :meth:`predict_tasks`; or a column is given in both.
        """
        twice = next((name for row in candidates for name in row if name in shared), None)
        if twice is not None:
            raise InputError(f"column {twice!r} is given for all and for each candidate")
        wanted = [name for name in self.format.read_names if name not in shared]
        columns: dict[str, Sequence[Any]] = {
            name: [shared[name]] for name in self.format.read_names if name in shared
        }
        if candidates:
            columns |= columns_of_rows(candidates, wanted, self.format)
        self.format.check_columns([*shared, *(candidates[0] if candidates else {})])
        count = len(candidates)
        return self._predicted(columns, count, self._encoder, calibrated)

    def predict_encoded(self, rows: Rows, calibrated: bool = True) -> NDArray[np.float64]:
        """Probabilities [N] for the main task, for rows encoded by ingest.

        The rows have the features and, if the model serves several domains, ``domain`` as an index
        or name. Dense values that are null, NaN or infinite are missing. Numbers may have any type.

        Raises:
            InputError: as :meth:`predict_tasks`; or an id is outside its table.
        """
        given = self._encoder_of_encoded
        columns, count = columns_of(rows, given.format)
        return self._predicted(columns, count, given, calibrated)[self.tasks[0]]

    @cached_property
    def _encoder_of_encoded(self) -> RawEncoder:
        dense, features = self._schema["dense"], self._schema["categorical"]
        columns = [RawColumn(name, "number") for name in dense]
        ids: list[IdEncoding] = []
        for one in features:
            name, is_list = one["name"], one["kind"] == "list"
            columns.append(RawColumn(name, "integer", is_list, optional=is_list))
            ids.append(IdEncoding(name, [name], one["num_embeddings"], "id", is_list))
        domains = {str(place): name for place, name in enumerate(self.domains)}
        return RawEncoder(
            EncoderFormat(
                columns,
                [DenseEncoding(name, name, given=True) for name in dense],
                ids,
                domains=self.domains,
                domain=DomainEncoding(DOMAIN_COLUMN, domains),
            )
        )

    def _predicted(
        self, columns: Columns, count: int, encoder: RawEncoder, calibrated: bool
    ) -> Probabilities:
        domains = self._domains(encoder.domains_of(columns, count), count)
        parts = []
        for start in range(0, max(count, 1), ROWS_AT_ONCE):
            end = min(start + ROWS_AT_ONCE, count)
            part = {
                name: values if len(values) == 1 else values[start:end]
                for name, values in columns.items()
            }
            encoded = encoder.encode(part, end - start)
            parts.append(self.logits(encoded, domains[start:end]))
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._probabilities(logits, domains, calibrated)

    def logits(self, encoded: Encoded, domains: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [N, T] for encoded rows, whose domains are indices in :attr:`domains`."""
        count = len(domains)
        if count == 0:
            return np.zeros((0, len(self.tasks)), np.float32)
        inputs: dict[str, NDArray[Any]] = {
            DENSE_INPUT: self._dense(encoded.dense, domains),
            EMBEDDINGS_INPUT: self._embeddings(encoded, count),
        }
        if self._sequences:
            counts = [encoded.lists[name][1] for name in self._sequences]
            inputs[COUNTS_INPUT] = np.stack(counts, axis=1)  # type: ignore[assignment]
        return self.session.run(None, inputs)[0]  # type: ignore[return-value]

    def _dense(
        self, values: NDArray[np.float32], domains: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """[N, D] -> [N, W]: the values (0 where missing), the missing indicators, and the
        domain."""
        if self._standard is not None:
            mean, deviation, clip = self._standard
            values = ((values - mean) / deviation).clip(-clip, clip).astype(np.float32)
        width = values.shape[1]
        dense = np.zeros((len(values), 2 * width + len(self.domains)), np.float32)
        missing = np.isnan(values)
        dense[:, :width] = np.where(missing, 0.0, values)
        dense[:, width : 2 * width] = missing.astype(np.float32)
        dense[np.arange(len(values)), 2 * width + domains] = 1.0
        return dense

    def _embeddings(self, encoded: Encoded, count: int) -> NDArray[np.float32]:
        """The looked-up embeddings [N, C, dimension]."""
        ids = np.empty((count, len(self._single)), np.int64)
        for place, name in enumerate(self._single):
            ids[:, place] = encoded.ids[name]
        single = self.tables.look_up(ids + self._single_rows)
        if not encoded.lists:
            return single
        found = np.zeros((count, self._width, self.tables.dimension), np.float32)
        found[:, self._single_places] = single
        for name, (rows, counts) in encoded.lists.items():
            places, first = self._places[name], self._first_rows[name]
            if len(rows) == 0:
                continue
            if name in self._sequences:
                back = np.arange(self._sequences[name])
                there = back < counts[:, None]  # [N, L]
                newest = np.where(there, np.cumsum(counts)[:, None] - 1 - back, 0)
                found[:, places] = self.tables.look_up(rows[newest] + first) * there[:, :, None]
            else:
                filled = counts > 0
                starts = (np.cumsum(counts) - counts)[filled]
                sums = np.add.reduceat(self.tables.look_up(rows + first), starts, axis=0)
                found[filled, places.start] = sums / counts[filled, None].astype(np.float32)
        return found

    def _probabilities(
        self, logits: NDArray[np.float32], domains: NDArray[np.int64], calibrated: bool
    ) -> Probabilities:
        if not calibrated or not self._maps:
            return {task: sigmoid(logits[:, place]) for place, task in enumerate(self.tasks)}
        found = {task: np.empty(len(logits)) for task in self.tasks}
        for index in np.unique(domains):
            own, maps = domains == index, self._maps.get(self.domains[index], {})
            for place, task in enumerate(self.tasks):
                found[task][own] = maps.get(task, UNCALIBRATED)(logits[own, place])
        return found

    def _domains(self, given: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
        """Index in :attr:`domains` of each row."""
        own = 0 if self.domain is None else self.domains.index(self.domain)
        if given is None and self.needs_domain:
            column = self.format.domain_column
            assert column is not None, "there are several domains"
            raise InputError(
                f"column {column.name!r} is missing: the model serves {', '.join(self.domains)}, "
                f"so each row must name its domain"
            )
        if given is None:
            return np.full(count, own)
        others = given[given != own] if self.domain is not None else []
        if len(others):
            raise InputError(
                f"{len(others)} of {len(given)} rows belong to other domains, such as "
                f"{self.domains[others[0]]}; this model serves {self.domain}"
            )
        return np.broadcast_to(given, count) if len(given) != count else given


def _description(path: Path) -> dict[str, Any]:
    """The contents of model.json."""
    try:
        description = read_json(path)
        version = description["version"]
    except (InputError, KeyError, TypeError, OSError) as error:
        raise damaged(path, REMEDY, error) from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: export version {version}, this code reads {FORMAT_VERSION}; train the "
            f"students again"
        )
    return description


def _above_tables(
    directory: Path, encoder: EncoderFormat, threads: int
) -> tuple[onnxruntime.InferenceSession, Maps, dict[str, Any]]:
    """The network, calibration and card of an export with the encoder ``encoder``."""
    if encoder.hash != read_json(directory / MODEL_FILE)["encoder"]:
        raise InputError(
            f"{directory / ENCODER_FILE}: is not the encoder that the model was exported with"
        )
    maps = {
        domain: {task: map_of(one) for task, one in by_task.items()}
        for domain, by_task in read_json(directory / CALIBRATION_FILE)["maps"].items()
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(directory / NETWORK_FILE), options, providers=["CPUExecutionProvider"]
    )
    return session, maps, read_json(directory / CARD_FILE)
