"""Serve an exported ranker in one process."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from recsys.config import InputError
from recsys.data.encoder import (
    DOMAIN_COLUMN,
    ENCODER_FILE,
    Encoder,
    RawColumn,
    encoder_of_ids,
)
from recsys.data.loader import META_COLUMNS, batch_of
from recsys.data.names import OWN
from recsys.data.schema import Schema, task_columns
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import ModelSettings
from recsys.serving.export import FORMAT_VERSION, MODEL_FILE, WEIGHTS_FILE

ROW, SERVED_DOMAIN = f"{OWN}row", f"{OWN}domain"
ROWS_AT_ONCE = 65_536  # bounds the memory of a large frame
UNUSED_SEED = 0  # every weight is overwritten by the exported one


class Predictor:
    """Probabilities of raw rows, of each task that the model learnt.

    :meth:`load` reads an exported student, such as models/students/feed/distilled/export.

    Example::

        >>> from recsys.data.encoder import DenseEncoding, IdEncoding
        >>> from recsys.data.schema import CategoricalFeature
        >>> encoder = Encoder(
        ...     columns=[RawColumn("price", "number"), RawColumn("ad", "text")],
        ...     dense=[DenseEncoding("price", "price")],
        ...     ids=[IdEncoding("ad", ["ad"], table_rows=100)],
        ... )
        >>> schema = Schema("toy", ["price"], [CategoricalFeature("ad", 100)], ["all"], [], 0.2, {})
        >>> predictor = Predictor(build_ranker(schema, ModelSettings()), schema, encoder)
        >>> predictor.predict(pd.DataFrame({"price": [9.5, None], "ad": ["shoes", "never seen"]}))
        array([0.2..., 0.2...])
    """

    def __init__(
        self, ranker: Ranker, schema: Schema, encoder: Encoder, domain: str | None = None
    ) -> None:
        self.ranker, self.schema, self.encoder = ranker.eval(), schema, encoder
        self.domain = domain

    @classmethod
    def load(cls, directory: Path) -> "Predictor":
        """Read what :func:`export_ranker` wrote.

        Raises:
            InputError: ``directory`` holds no export, one of another version, or another encoder.
        """
        path = directory / MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected the export folder of a student")
        description = json.loads(path.read_text())
        if description["version"] != FORMAT_VERSION:
            raise InputError(
                f"{path}: export version {description['version']}, this code reads "
                f"{FORMAT_VERSION}; train the students again"
            )
        encoder = Encoder.load(directory)
        if encoder.hash != description["encoder"]:
            raise InputError(
                f"{directory / ENCODER_FILE}: is not the encoder that the model was exported with"
            )
        schema = Schema.from_json(description["schema"])
        settings = ModelSettings.model_validate(description["model"])
        partition = (
            None if description["partition"] is None else Partition(**description["partition"])
        )
        ranker = build_ranker(schema, settings, partition, UNUSED_SEED)
        ranker.load_state_dict(load_file(directory / WEIGHTS_FILE))
        return cls(ranker, schema, encoder, description["domain"])

    @property
    def needs_domain(self) -> bool:
        """Whether rows must say their domain: the model serves several."""
        return self.domain is None and len(self.schema.domains) > 1

    @property
    def raw_columns(self) -> list[RawColumn]:
        """The columns of raw rows that are read; that of the domain, if it is no other, last."""
        columns, domain = self.encoder.columns, self.encoder.domain_column
        if domain is None or domain in columns:
            return columns
        return [*columns, replace(domain, optional=not self.needs_domain)]

    def predict(self, frame: pl.DataFrame | pd.DataFrame) -> NDArray[np.float64]:
        """Probabilities [N] of the main task; see :meth:`predict_tasks`."""
        return self.predict_tasks(frame)[self.schema.tasks[0]]

    def predict_tasks(self, frame: pl.DataFrame | pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Probabilities [N] by task of raw rows, with the columns and values that the log has.

        :attr:`raw_columns` says which are read, and which of them may be left out; other columns
        are not looked at. A value that the log never had is what training calls unknown. The domain
        is given as the log has it or by its name.

        Raises:
            InputError: a column is missing, stands twice or holds something else than in the log,
                or a row is of a domain that the model does not serve.
        """
        return self._predict(frame, self.encoder)

    def predict_encoded(self, frame: pl.DataFrame | pd.DataFrame) -> NDArray[np.float64]:
        """Probabilities [N] of the main task of rows as ingest encodes them.

        They hold the features and, if the model serves several domains, ``domain``, an index or a
        name. A dense value that is null, NaN or infinite is missing. Numbers may be of any type.

        Raises:
            InputError: as :meth:`predict_tasks`; or an id lies outside its table.
        """
        schema = self.schema
        encoder = encoder_of_ids(schema.dense, schema.categorical, schema.domains, given=True)
        return self._predict(frame, encoder)[schema.tasks[0]]

    def _predict(
        self, frame: pl.DataFrame | pd.DataFrame, encoder: Encoder
    ) -> dict[str, NDArray[np.float64]]:
        present = list(frame.columns)
        encoder.check_columns([name for name in present if isinstance(name, str)])
        read = [column.name for column in encoder.columns]
        if encoder.domain is not None:
            read = list(dict.fromkeys([*read, encoder.domain.column, DOMAIN_COLUMN]))
        read = [name for name in read if name in present]
        twice = next((name for name in read if present.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"column {twice!r} stands twice")
        numbered = pl.Series(ROW, np.arange(len(frame)))  # a frame may have no column that is read
        rows = pl.DataFrame([numbered, *(_column(frame, name) for name in read)])
        rows = rows.with_columns(self._domains(encoder.domain_of(rows), len(frame)))
        parts = []
        for part in rows.iter_slices(ROWS_AT_ONCE):
            encoded = encoder.encode(part.drop(SERVED_DOMAIN))
            parts.append(
                self._predict_part(encoded.with_columns(part[SERVED_DOMAIN].alias("domain")))
            )
        return {
            task: np.concatenate([np.zeros(0), *(part[task] for part in parts)])
            for task in self.schema.tasks
        }

    @torch.inference_mode()
    def _predict_part(self, rows: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
        unread = [*META_COLUMNS, *task_columns("label", self.schema.tasks)]
        filled = rows.with_columns(pl.lit(0).alias(name) for name in unread if name != "domain")
        standard = self.schema.serving_standard
        if standard is not None:
            filled = standard.apply(filled, self.schema.dense)
        batch = batch_of(filled, self.schema, np.ones(rows.height, np.float32), rows.height)
        logits = self.ranker(
            batch.dense, batch.sparse
        ).values()  # of [N], in the order of the tasks
        return {
            task: torch.sigmoid(one.double()).numpy()
            for task, one in zip(self.schema.tasks, logits, strict=True)
        }

    def _domains(self, given: pl.Series | None, rows: int) -> pl.Series:
        """Index in ``schema.domains`` of each row, int64."""
        domains = self.schema.domains
        own = 0 if self.domain is None else domains.index(self.domain)
        if given is None and self.needs_domain:
            column = self.encoder.domain_column
            assert column is not None, "there are several domains"
            raise InputError(
                f"column {column.name!r} is missing: the model serves {', '.join(domains)}, and "
                f"each row says of which it is"
            )
        if given is None:
            return pl.Series(SERVED_DOMAIN, np.full(rows, own, dtype=np.int64))
        others = given.filter(given != own) if self.domain is not None else []
        if len(others):
            raise InputError(
                f"{len(others)} of {rows} rows are of other domains, such as {domains[others[0]]}; "
                f"this model serves {self.domain}"
            )
        return given.cast(pl.Int64).alias(SERVED_DOMAIN)


def _column(frame: pl.DataFrame | pd.DataFrame, name: str) -> pl.Series:
    """One column; of the type Null where all is missing, whatever its type says."""
    if isinstance(frame, pl.DataFrame):
        found = frame[name]
    else:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            column = column.astype(object)
        try:
            found = pl.from_pandas(pd.Series(column)).alias(name)
        except (pa.ArrowException, pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
            kinds = ", ".join(sorted({type(value).__name__ for value in column}))
            raise InputError(
                f"column {name!r} mixes values that are of no one type: {kinds}"
            ) from None
    if found.null_count() == len(found):
        return pl.Series(name, [None], dtype=pl.Null).new_from_index(0, len(found))
    return found
