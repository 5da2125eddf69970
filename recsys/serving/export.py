"""Export a ranker so that it can be served without the code that trained it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from recsys.data.encoder import Encoder
from recsys.data.schema import Schema
from recsys.files import write_json, write_sums
from recsys.models.factory import build_ranker
from recsys.models.names import TABLE_PREFIX
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import ModelSettings
from recsys.serving.export_format import (
    CALIBRATION_FILE,
    CARD_FILE,
    FORMAT_VERSION,
    MODEL_FILE,
    NETWORK_FILE,
    SCALES,
    TABLES,
    WEIGHTS_FILE,
)
from recsys.serving.network import Network, onnx_of
from recsys.serving.settings import Precision

TABLE_KEY = "embeddings.embedding_bags.{}.weight"
UNUSED_SEED = 0  # every weight is overwritten with the exported one
LARGEST_INT8 = 127


def export_ranker(
    state: dict[str, Tensor],
    schema: Schema,
    settings: ModelSettings,
    encoder: Encoder,
    directory: Path,
    partition: Partition | None = None,
    domain: str | None = None,
    precision: Precision = "fp32",
    calibration: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the files listed in :mod:`recsys.serving.export_format`, encoder.json and sums.json to
    ``directory``.

    Args:
        state: full unsharded weights of a plain :class:`Ranker`, without distillation heads.
        schema: its :meth:`Schema.for_serving` form is written.
        encoder: the encoder of the training data.
        partition: the partition, for a model with towers.
        domain: the only one of ``schema.domains`` that the model serves; None: all domains.
        precision: precision of the tables.
        calibration: the result of :func:`recsys.serving.calibrating.calibration_of`; None: no
            calibration.
        card: a description of the model and its origin, for people.

    Example::

        >>> from tempfile import mkdtemp
        >>> from recsys.data.encoder_format import DenseEncoding, IdEncoding, RawColumn
        >>> from recsys.data.schema import CategoricalFeature
        >>> from recsys.serving.predictor import Predictor
        >>> schema = Schema("toy", ["price"], [CategoricalFeature("ad", 100)], ["all"], [], 0.2, {})
        >>> columns = [RawColumn("price", "number", optional=True), RawColumn("ad", "text")]
        >>> dense, ids = [DenseEncoding("price", "price")], [IdEncoding("ad", ["ad"], 100)]
        >>> encoder = Encoder(columns, dense, ids, examples=[{"price": 9.5, "ad": "shoes"}])
        >>> ranker, folder = build_ranker(schema, ModelSettings()), Path(mkdtemp()) / "export"
        >>> export_ranker(ranker.state_dict(), schema, ModelSettings(), encoder, folder)
        >>> Predictor.load(folder).predict([{"price": 9.5, "ad": "shoes"}, {"ad": "new"}])
        array([0.2..., 0.2...])
    """
    directory.mkdir(parents=True, exist_ok=True)
    ranker = build_ranker(schema, settings, partition, UNUSED_SEED, table_device="meta")
    is_table = {TABLE_KEY.format(TABLE_PREFIX + piece.name) for piece in ranker.pieces}
    above = {name: value.detach().cpu() for name, value in state.items() if name not in is_table}
    ranker.load_state_dict(above, strict=False)
    first_rows, tables = merged_tables(state, schema, ranker)
    tensors = above | quantised(tables, precision)
    save_file(
        {name: value.contiguous().clone() for name, value in sorted(tensors.items())},
        directory / WEIGHTS_FILE,
    )
    network = Network(ranker)
    (directory / NETWORK_FILE).write_bytes(onnx_of(network))
    sequences = settings.sequences
    description = {
        "version": FORMAT_VERSION,
        "model": settings.model_dump(),
        "schema": asdict(schema.for_serving()),
        "partition": None if partition is None else asdict(partition),
        "domain": domain,
        "encoder": encoder.hash,
        "tables": precision,
        "first_rows": first_rows,
        "sequences": {name: sequences[name].length for name in network.sequence_names},
    }
    encoder.save(directory)
    (directory / MODEL_FILE).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    write_json(directory / CALIBRATION_FILE, dict(calibration or {"maps": {}}))
    write_json(directory / CARD_FILE, dict(card or {}))
    write_sums(directory)


def merged_tables(
    state: Mapping[str, Tensor], schema: Schema, ranker: Ranker
) -> tuple[dict[str, int], Tensor]:
    """The first row of each feature's table, and all tables as one [R, N] float32; column slices
    are joined."""
    pieces = {piece.feature: [] for piece in ranker.pieces}
    for piece in ranker.pieces:
        pieces[piece.feature].append(piece)
    sequences = ranker.sequences.sequences
    first_rows: dict[str, int] = {}
    parts: list[Tensor] = []
    rows = 0
    for feature in schema.categorical:
        own = sequences.get(feature.name)
        if own is not None and own.shares_table:
            continue
        slices = sorted(pieces[feature.name], key=lambda piece: piece.number)
        weights = [state[TABLE_KEY.format(TABLE_PREFIX + piece.name)] for piece in slices]
        parts.append(torch.cat([weight.detach().cpu().float() for weight in weights], dim=1))
        first_rows[feature.name] = rows
        rows += feature.num_embeddings
    for name, one in sequences.items():
        if one.shares_table:
            first_rows[name] = first_rows[one.target]
    empty = torch.zeros(0, ranker.embedding_dimension)
    return first_rows, torch.cat([empty, *parts])


def quantised(tables: Tensor, precision: Precision) -> dict[str, Tensor]:
    """Tables [R, N] float32 in their stored form: int8 has a scale per row."""
    if precision == "fp32":
        return {TABLES: tables}
    if precision == "fp16":
        return {TABLES: tables.half()}
    scales = tables.abs().amax(dim=1).clamp(min=1e-12) / LARGEST_INT8
    return {TABLES: (tables / scales.unsqueeze(1)).round().to(torch.int8), SCALES: scales}
