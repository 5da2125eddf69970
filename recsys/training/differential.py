"""Differential checkpoints: the table rows trained on since the last full one (Check-N-Run, NSDI
2022, section 4).

A differential checkpoint is Check-N-Run's one-shot kind: it has every row trained on since the last
full one. Two folders are enough to restore a run, and a damaged differential checkpoint costs only
itself. Rows may be quantised.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, distributed, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.training.checkpoints import (
    MANIFEST_FILE,
    ROWS_SUFFIX,
    DamagedCheckpointError,
    checksum,
    load_checkpoint,
    read_manifest,
)
from recsys.training.settings import Quantisation
from recsys.upstream import ShardedTensor, table_configs

ROWS, WEIGHT = "rows", "weight"
SMALL_IDS = 2**31  # rows that fit into int32


@dataclass(frozen=True)
class _LocalTable:
    """A table's rows on this rank: ``touched`` [rows] bool, from ``first_row``; ``copies`` is the
    number of ranks with the same rows."""

    touched: Tensor
    first_row: int
    copies: int


class TouchedRows:
    """Which rows of this rank's shards training has looked up since the last :meth:`clear`; takes a
    byte per row.

    TorchRec calls it after each look-up with the ids that reached this rank. TorchRec's own
    ModelDeltaTrackerTrec keeps the ids of every batch, including predictions, which do not change
    rows.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables: dict[str, _LocalTable] = {}
        for path, module in _collections(model):
            self._watch(path, module)

    @torch.no_grad()
    def rows(self, all_rows: bool = False) -> Iterator[tuple[str, Tensor, int]]:
        """(weight name, touched rows of the whole table [n] int64, first row of the shard);
        collective.

        Ranks with copies of a table divide its rows among them.
        """
        for name, table in self._tables.items():
            touched = torch.ones_like(table.touched) if all_rows else table.touched
            if table.copies > 1 and not all_rows:
                union = touched.to(torch.uint8)
                distributed.all_reduce(union, distributed.ReduceOp.MAX)
                touched = union.bool()
            found = touched.nonzero().flatten() + table.first_row
            yield (
                name,
                found[distributed.get_rank() :: table.copies] if table.copies > 1 else found,
                table.first_row,
            )

    def mark(self, name: str, rows: Tensor) -> None:
        """Mark ``rows`` (of the whole table) as touched."""
        table = self._tables.get(name)
        if table is not None:
            local = rows.to(table.touched.device) - table.first_row
            table.touched[local[(local >= 0) & (local < len(table.touched))]] = True

    def clear(self) -> None:
        """Forget all touched rows."""
        for table in self._tables.values():
            table.touched.zero_()

    def _watch(self, path: str, module: ShardedEmbeddingBagCollection) -> None:
        weights = module.state_dict()
        by_feature: dict[str, list[Tensor]] = {}
        for table, config in table_configs(module).items():
            weight = weights[f"embedding_bags.{table}.weight"]
            shards = list(_shards(weight))
            if not shards:
                continue
            (shard, first_row, _), *_ = shards  # shards with other columns have the same rows
            copies = 1 if isinstance(weight, ShardedTensor) else distributed.get_world_size()
            # On the device of the ids, which index it at every step
            none = torch.zeros(len(shard), dtype=torch.bool, device=shard.device)
            local = _LocalTable(none, first_row, copies)
            self._tables[_weight_name(path, table)] = local
            for feature in config.feature_names:
                by_feature.setdefault(feature, []).append(local.touched)

        def record(ids: KeyedJaggedTensor, *_: Any) -> None:
            if torch.is_grad_enabled():
                for feature, jagged in ids.to_dict().items():
                    for touched in by_feature[feature]:
                        touched[jagged.values()] = True

        module.register_post_lookup_tracker_fn(record)


def take_rows(
    state: dict[str, Any], touched: TouchedRows, all_rows: bool, quantisation: Quantisation
) -> dict[str, Tensor]:
    """Copies of the touched rows, or of all rows, of this rank's weights and optimiser state;
    collective.

    Args:
        state: the result of :meth:`Engine.state`.
        quantisation: quantisation of the weights; optimiser state is not quantised.

    Returns:
        "0|rows|<name>": rows [n]; "<first column>|<weight or kind of state>|<name>": [n, columns]
        or [n].
    """
    taken: dict[str, Tensor] = {}
    for name, rows, first_row in touched.rows(all_rows):
        small = state["model"][name].size(0) < SMALL_IDS
        taken[f"0|{ROWS}|{name}"] = (rows.to(torch.int32) if small else rows).cpu()
        for kind, value in _values(state, name).items():
            for shard, _, column in _shards(value):
                part = shard[rows - first_row].cpu()
                taken[f"{column}|{kind}|{name}"] = (
                    _quantise(part, quantisation) if kind == WEIGHT else part
                )
    return taken


def load_state(
    state: dict[str, Any],
    tables: dict[str, list[Any]],
    touched: TouchedRows | None,
    directory: Path,
) -> dict[str, Any]:
    """Fill ``state`` in place from a checkpoint; for a differential one, also from the full one it
    is based on. Collective.

    ``touched`` then contains the rows that differ from the full one. Returns the checkpoint's
    facts.

    Args:
        tables: the result of :func:`describe_tables`.

    Raises:
        DamagedCheckpointError: one of the two is incomplete, or belongs to another model.
    """
    written = read_manifest(directory)["facts"].get("rows")
    if touched is not None:
        touched.clear()
    if written is None:
        return load_checkpoint(state, directory)
    if written["tables"] != tables:
        raise DamagedCheckpointError(
            f"{directory}: the checkpoint is not of this model and its settings: its tables"
        )
    if written["base"] is not None:
        base = directory.with_name(written["base"])
        if checksum(base / MANIFEST_FILE) != written["base_manifest"]:
            raise DamagedCheckpointError(
                f"{directory}: {base}, which it needs, is missing or was changed"
            )
        load_state(state, tables, None, base)
    facts = load_checkpoint(without_tables(state, tables), directory)
    for path in sorted(directory.glob(f"*{ROWS_SUFFIX}")):
        _put_rows(state, touched if written["base"] is not None else None, path)
    return facts


def describe_tables(model: nn.Module, optimizer: str) -> dict[str, list[Any]]:
    """[rows, columns, optimiser] of each sharded table in ``model``, by weight name; equal on every
    rank."""
    return {
        _weight_name(path, table): [config.num_embeddings, config.embedding_dim, optimizer]
        for path, module in _collections(model)
        for table, config in table_configs(module).items()
    }


def without_tables(state: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """``state`` without the tables and their optimiser state."""
    tables = set(names)
    model = {name: value for name, value in state["model"].items() if name not in tables}
    rest = {key: value for key, value in state.items() if key not in ("model", "tables")}
    return rest | ({"model": model} if model else {})


def _put_rows(state: dict[str, Any], touched: TouchedRows | None, path: Path) -> None:
    """Write a file of :func:`take_rows` over this rank's shards."""
    with safe_open(path, "pt") as file:
        rows_of = {}
        for key in file.keys():  # noqa: SIM118 - no mapping
            column, kind, name = key.split("|", 2)
            if kind == ROWS:
                continue
            if name not in rows_of:
                rows_of[name] = file.get_tensor(f"0|{ROWS}|{name}").long()
                if touched is not None:
                    touched.mark(name, rows_of[name])
            values = file.get_tensor(key)
            if kind == WEIGHT:
                values = _dequantise(values)
            # No optimiser state if the rank has no shard of the table
            held = _values(state, name).get(kind)
            for shard, first_row, first_column in [] if held is None else _shards(held):
                _overlay(shard, rows_of[name] - first_row, values, int(column) - first_column)


@torch.no_grad()
def _overlay(shard: Tensor, rows: Tensor, values: Tensor, column: int) -> None:
    """Write ``values`` into ``shard`` at ``rows``, from ``column`` on, as far as they are inside
    it."""
    inside = (rows >= 0) & (rows < len(shard))
    rows, values = rows[inside].to(shard.device), values[inside].to(shard.device)
    if shard.dim() == 1:
        shard[rows] = values
        return
    start, end = max(column, 0), min(column + values.shape[1], shard.shape[1])
    if start < end:
        shard[rows, start:end] = values[:, start - column : end - column]


def _quantise(values: Tensor, quantisation: Quantisation) -> Tensor:
    """[n, columns] unchanged, as fp16, or as uint8 with a scale and an offset at the end of each
    row."""
    if quantisation == "fp16":
        return values.half()
    if quantisation == "int8":
        return torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(values)
    return values


def _dequantise(values: Tensor) -> Tensor:
    """The values as float32; their type says how they were quantised."""
    if values.dtype == torch.uint8:
        return torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(values)
    return values.float()


def _values(state: dict[str, Any], name: str) -> dict[str, Any]:
    """A table's weight and optimiser state, by kind."""
    states = state.get("tables", {}).get(name, {})
    return {WEIGHT: state["model"][name]} | {
        key.rsplit(".", 1)[-1]: value for key, value in states.items()
    }


def _shards(value: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """(values, first row, first column) of each shard on this rank; a replicated tensor is one."""
    if not isinstance(value, ShardedTensor):
        yield value.detach(), 0, 0
        return
    for shard in value.local_shards():
        row, *column = shard.metadata.shard_offsets
        yield shard.tensor.detach(), row, column[0] if column else 0


def _collections(model: nn.Module) -> list[tuple[str, ShardedEmbeddingBagCollection]]:
    return [
        (path, m)
        for path, m in model.named_modules()
        if isinstance(m, ShardedEmbeddingBagCollection)
    ]


def _weight_name(path: str, table: str) -> str:
    return f"{path}.embedding_bags.{table}.weight"
