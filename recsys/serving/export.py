"""Write a ranker so that it can be served without anything that trained it."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from recsys.data.encoder import Encoder
from recsys.data.schema import Schema
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings

WEIGHTS_FILE = "weights.safetensors"
MODEL_FILE = "model.json"
FORMAT_VERSION = 2  # since 2 with the encoder


def export_ranker(
    state: dict[str, Tensor],
    schema: Schema,
    settings: ModelSettings,
    encoder: Encoder,
    directory: Path,
    partition: Partition | None = None,
    domain: str | None = None,
) -> None:
    """Write weights.safetensors, model.json and encoder.json in ``directory``.

    Args:
        state: full unsharded weights of a plain :class:`Ranker`, without distillation heads.
        schema: what :meth:`Schema.for_serving` keeps of it is written.
        encoder: of the data that the model has learnt from.
        partition: of a model with towers.
        domain: the only one of ``schema.domains`` that the model serves; None: all of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in sorted(state.items())
    }
    save_file(tensors, directory / WEIGHTS_FILE)
    description = {
        "version": FORMAT_VERSION,
        "model": settings.model_dump(),
        "schema": asdict(schema.for_serving()),
        "partition": None if partition is None else asdict(partition),
        "domain": domain,
        "encoder": encoder.hash,
    }
    encoder.save(directory)
    (directory / MODEL_FILE).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
