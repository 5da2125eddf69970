"""Serve an exported ranker in one process."""

import difflib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from recsys.config import InputError
from recsys.data.loader import META_COLUMNS, batch_of
from recsys.data.schema import Schema, task_columns
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import ModelSettings
from recsys.serving.export import FORMAT_VERSION, MODEL_FILE, WEIGHTS_FILE

ROWS_AT_ONCE = 65_536  # bounds the memory of a large frame
UNUSED_SEED = 0  # every weight is overwritten by the exported one


class Predictor:
    """Probabilities of encoded rows, of each task that the model learnt.

    Example::

        predictor = Predictor.load(Path("artifacts/students/feed/distilled/export"))
        probabilities = predictor.predict(polars.read_parquet("part-00000.parquet"))  # [N]
    """

    def __init__(self, ranker: Ranker, schema: Schema, domain: str | None = None) -> None:
        self.ranker, self.schema, self.domain = ranker.eval(), schema, domain

    @classmethod
    def load(cls, directory: Path) -> "Predictor":
        """Read what :func:`export_ranker` wrote.

        Raises:
            InputError: ``directory`` holds no export, or one of another version.
        """
        path = directory / MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected the export folder of a student")
        description = json.loads(path.read_text())
        if description["version"] != FORMAT_VERSION:
            raise InputError(
                f"{path}: export version {description['version']}, this code reads {FORMAT_VERSION}"
            )
        schema = Schema.from_json(description["schema"])
        settings = ModelSettings.model_validate(description["model"])
        partition = (
            None if description["partition"] is None else Partition(**description["partition"])
        )
        ranker = build_ranker(schema, settings, partition, UNUSED_SEED)
        ranker.load_state_dict(load_file(directory / WEIGHTS_FILE))
        return cls(ranker, schema, description.get("domain"))  # early exports do not say it

    @property
    def needs_domain(self) -> bool:
        """Whether rows must say their domain: the model serves several."""
        return self.domain is None and len(self.schema.domains) > 1

    @property
    def columns(self) -> list[str]:
        """The columns that rows must have."""
        features = [*self.schema.dense, *(feature.name for feature in self.schema.categorical)]
        return ["domain", *features] if self.needs_domain else features

    def predict(self, frame: pl.DataFrame | pd.DataFrame) -> NDArray[np.float64]:
        """Probabilities [N] of the main task; see :meth:`predict_tasks`."""
        return self.predict_tasks(frame)[self.schema.tasks[0]]

    @torch.inference_mode()
    def predict_tasks(self, frame: pl.DataFrame | pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Probabilities [N] by task of ``frame``'s rows, which hold the features as ingest encodes
        them, and their domain if the model serves several.

        A dense value that is null, NaN or infinite is missing, as in ingest. Numbers may be of any
        type. Other columns are not looked at.

        Raises:
            InputError: a feature's column is missing, stands twice or holds something else, an id
                lies outside its table, or a row is of a domain that the model does not serve.
        """
        rows = self._rows(frame)
        parts = [
            self._predict_part(rows.slice(start, ROWS_AT_ONCE))
            for start in range(0, rows.height, ROWS_AT_ONCE)
        ]
        return {
            task: np.concatenate([np.zeros(0), *(part[task] for part in parts)])
            for task in self.schema.tasks
        }

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

    def _rows(self, frame: pl.DataFrame | pd.DataFrame) -> pl.DataFrame:
        """The domain and the features of ``frame`` in the types of a part of data/windows."""
        present = list(frame.columns)
        needed = self.columns
        missing = [name for name in needed if name not in present]
        if missing:
            texts = [name for name in present if isinstance(name, str)]
            near = difflib.get_close_matches(missing[0], texts, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"predict: column {missing[0]!r} is missing ({len(missing)} of {len(needed)} "
                f"columns){hint}"
            )
        read = ["domain", *needed] if "domain" in present and not self.needs_domain else needed
        twice = [name for name in read if present.count(name) > 1]
        if twice:
            raise InputError(f"predict: column {twice[0]!r} stands twice")
        if len(frame) == 0:  # an empty frame's columns have no types to speak of
            ids = {feature.name: feature.kind for feature in self.schema.categorical}
            types = {
                name: pl.List(pl.Int64) if ids.get(name) == "list" else pl.Int64
                for name in {"domain", *needed}
            }
            return pl.DataFrame(schema=types)
        columns = {name: _column(frame, name) for name in read}
        dense = [_dense(columns[name]) for name in self.schema.dense]
        categorical = [
            (_id_lists if feature.kind == "list" else _ids)(
                columns[feature.name], feature.num_embeddings
            )
            for feature in self.schema.categorical
        ]
        return pl.DataFrame(
            [self._domains(columns.get("domain"), len(frame)), *dense, *categorical]
        )

    def _domains(self, given: pl.Series | None, rows: int) -> pl.Series:
        """Index in ``schema.domains`` of each row, int64."""
        domains = self.schema.domains
        own = 0 if self.domain is None else domains.index(self.domain)
        if given is None:
            return pl.Series("domain", np.full(rows, own, dtype=np.int64))
        index = _ids(given, len(domains), f" ({', '.join(domains)})")
        others = index.filter(index != own) if self.domain is not None else []
        if len(others):
            raise InputError(
                f"predict: column 'domain': {len(others)} of {rows} rows are of other domains, "
                f"such as {others[0]} ({domains[others[0]]}); this model serves {own} "
                f"({self.domain})"
            )
        return index


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
                f"predict: column {name!r} mixes values that are of no one type: {kinds}"
            ) from None
    if found.null_count() == len(found):
        return pl.Series(name, [None], dtype=pl.Null).new_from_index(0, len(found))
    return found


def _dense(column: pl.Series) -> pl.Series:
    """The values, float32; null where they are missing or not finite."""
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise InputError(f"predict: column {column.name!r} holds {column.dtype}; expected numbers")
    values = column.cast(pl.Float32)
    return values.set(~values.is_finite(), None)


def _ids(column: pl.Series, bound: int, meaning: str = "") -> pl.Series:
    """The values, int64, each in [0, ``bound``)."""
    where = f"predict: column {column.name!r}"
    if column.dtype.is_decimal():
        column = column.cast(pl.Float64)
    if column.null_count() or (column.dtype.is_float() and column.is_nan().any()):
        raise InputError(f"{where} holds null; every row needs one id")
    if not column.dtype.is_numeric():
        raise InputError(f"{where} holds {column.dtype}; expected ids in [0, {bound}){meaning}")
    whole = column == column.floor() if column.dtype.is_float() else True
    outside = column.filter(~(whole & (column >= 0) & (column < bound)))
    if len(outside):
        raise InputError(f"{where}: ids must be in [0, {bound}){meaning}, got {outside[0]}")
    return column.cast(pl.Int64)


def _id_lists(column: pl.Series, bound: int) -> pl.Series:
    """The lists as lists of int64, each in [0, ``bound``); null is an empty one."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if not (isinstance(column.dtype, pl.List) or column.dtype == pl.Null):
        raise InputError(f"predict: column {column.name!r} holds {column.dtype}; expected lists")
    filled = column.filter(column.list.len() > 0) if column.dtype != pl.Null else column.clear()
    if len(filled):
        _ids(filled.explode(), bound)
    return column.cast(pl.List(pl.Int64))
