"""Serve an exported ranker in one process."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
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

UNUSED_SEED = 0  # every weight is overwritten by the exported one


class Predictor:
    """Probabilities of encoded rows, of each task that the model learnt.

    Example::

        predictor = Predictor.load(Path("artifacts/students/feed/distilled/export"))
        probabilities = predictor.predict(polars.read_parquet("part-00000.parquet"))  # [N]
    """

    def __init__(self, ranker: Ranker, schema: Schema) -> None:
        self.ranker, self.schema = ranker.eval(), schema

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
        return cls(ranker, schema)

    def predict(self, frame: pl.DataFrame | pd.DataFrame) -> NDArray[np.float64]:
        """Probabilities [N] of the main task; see :meth:`predict_tasks`."""
        return self.predict_tasks(frame)[self.schema.tasks[0]]

    @torch.inference_mode()
    def predict_tasks(self, frame: pl.DataFrame | pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Probabilities [N] by task of ``frame``'s rows, which hold the domain and the features as
        ingest encodes them.

        Raises:
            InputError: a feature's column is missing, or an id lies outside its table.
        """
        rows = frame if isinstance(frame, pl.DataFrame) else pl.from_pandas(frame)
        self._check(rows)
        if rows.is_empty():
            return {task: np.zeros(0) for task in self.schema.tasks}
        unread = [*META_COLUMNS, *task_columns("label", self.schema.tasks)]
        filled = rows.with_columns(
            pl.lit(0).alias(name) for name in unread if name not in rows.columns
        )
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

    def _check(self, rows: pl.DataFrame) -> None:
        features = [
            "domain",
            *self.schema.dense,
            *(feature.name for feature in self.schema.categorical),
        ]
        missing = [name for name in features if name not in rows.columns]
        if missing:
            raise InputError(
                f"predict: column {missing[0]!r} is missing ({len(missing)} of {len(features)} "
                f"features)"
            )
        for feature in self.schema.categorical:
            column = rows[feature.name]
            ids = column.explode() if feature.kind == "list" else column
            if feature.kind == "id" and ids.null_count():
                raise InputError(
                    f"predict: column {feature.name!r} holds null; every row needs one id"
                )
            ids = ids.drop_nulls()
            if len(ids) and (ids.min() < 0 or ids.max() >= feature.num_embeddings):  # type: ignore[operator]
                raise InputError(
                    f"predict: column {feature.name!r}: ids must be in [0, "
                    f"{feature.num_embeddings})"
                )
