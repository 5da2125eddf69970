"""The rankers: embeddings and dense features -> interaction -> representation -> logits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.models.layers import DotInteraction, LowRankCrossNetwork, perceptron
from recsys.models.names import TABLE_PREFIX, check_sequences, position_names
from recsys.models.peers import Peers
from recsys.models.sequences import (
    RankerBagConfig,
    SequencePooling,
    bag_collection,
)
from recsys.models.settings import PASS_THROUGH, ModelSettings, SequenceSettings
from recsys.models.slices import Piece, are_whole, schema_order, whole_pieces
from recsys.models.tower_modules import tower_of, tower_width
from recsys.models.wukong import WukongLayer

SERVING = "serving"
SMALLEST_RATE = 1e-4


class Arch(nn.Module):
    """Combines the dense vector with the embeddings or the towers' outputs; subclasses define the
    interaction.

    ``members`` has the positions of each tower's ``pieces``, which are features or column slices of
    them; None without towers. :meth:`compress` runs the tower modules on this rank. The tower
    transform empties the towers of other hosts, leaves out their outputs, and calls
    :meth:`interact` with the outputs of all towers. Pass-through towers return embeddings in the
    schema's order, so the model is the same as without towers.
    """

    out_features: int

    def __init__(
        self,
        dense_features: int,
        towers: list[list[int]] | None,
        pieces: list[Piece],
        s: ModelSettings,
        own_weights: int,
    ) -> None:
        super().__init__()
        self.own_weights = own_weights
        self.dimension = s.interaction_dimension
        self.project = nn.Linear(dense_features, self._dense_dimension(s))
        self.members = towers
        self.towers = nn.ModuleList(
            tower_of([pieces[p] for p in members], s) for members in towers or []
        )
        self.width = (
            sum(map(tower_width, self.towers)) if towers else len(pieces) * s.embedding_dimension
        )
        self.order: list[int] | None = None
        if towers and s.tower_kind == PASS_THROUGH:
            features = list(dict.fromkeys(piece.feature for piece in pieces))
            placed = [pieces[position] for members in towers for position in members]
            self.order = schema_order(placed, features, s.embedding_dimension)
        self._build(s)

    def forward(self, dense: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """[B, W], [B, F, N] -> the result of :meth:`interact`."""
        return self.interact(dense, self.compress(embeddings))

    def compress(self, embeddings: Tensor) -> list[Tensor]:
        """[B, P, N] -> each tower's output [B, O + T], where the last T columns are the sums of its
        ids' first-order weights.

        Without towers all embeddings are one output, [B, P * N + T].
        """
        if self.members is None:
            return [self._with_own_weights(embeddings.flatten(1), embeddings)]
        outputs = []
        for tower, members in zip(self.towers, self.members, strict=True):
            if members:
                own = embeddings[:, members]
                outputs.append(self._with_own_weights(tower(own).flatten(1), own))
        return outputs

    def _with_own_weights(self, output: Tensor, embeddings: Tensor) -> Tensor:
        """``output`` [B, O], followed by the sums over P of the first T columns of [B, P, N]."""
        if self.own_weights == 0:
            return output
        sums = embeddings[:, :, : self.own_weights].sum(dim=1)
        return torch.cat([output, sums.to(output.dtype)], dim=1)

    def interact(self, dense: Tensor, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """[B, W] and the outputs of all towers, in the model's order -> [B, out_features], [B, T].

        The second result contains the sums of all ids' first-order weights.
        """
        projected = self.project(dense)
        vectors = [output.to(projected.dtype) for output in outputs]
        first_order = projected.new_zeros(projected.shape[0], 0)
        if self.own_weights:
            first_order = sum(output[:, -self.own_weights :] for output in outputs)
            assert isinstance(first_order, Tensor)
            vectors = [vector[:, : -self.own_weights] for vector in vectors]
        if self.order is not None:
            placed = torch.cat(vectors, dim=1).unflatten(1, (len(self.order), -1))
            vectors = [placed[:, self.order].flatten(1)]
        crossed = self._interact(torch.cat([projected, *vectors], dim=1))  # of [B, D + sum of O]
        return crossed, first_order

    def _build(self, s: ModelSettings) -> None:
        """Create the layers of the interaction, and set ``out_features``."""
        raise NotImplementedError

    def _dense_dimension(self, settings: ModelSettings) -> int:
        raise NotImplementedError

    def _interact(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class DotArch(Arch):
    """DLRM: dots between the dense vector and the embeddings, or the towers' vectors of width D."""

    def _build(self, s: ModelSettings) -> None:
        self.interaction = DotInteraction(1 + self.width // self.dimension, self.dimension)
        self.out_features = self.interaction.out_features

    def _dense_dimension(self, settings: ModelSettings) -> int:
        return settings.interaction_dimension

    def _interact(self, inputs: Tensor) -> Tensor:
        return self.interaction(inputs.unflatten(1, (-1, self.dimension)))  # [B, 1 + V, D]


class CrossArch(Arch):
    """DCNv2: cross layers over the dense vector and the embeddings, or the towers' outputs."""

    def _build(self, s: ModelSettings) -> None:
        self.out_features = s.embedding_dimension + self.width
        self.cross = LowRankCrossNetwork(self.out_features, s.cross_layers, s.cross_rank)

    def _dense_dimension(self, settings: ModelSettings) -> int:
        return settings.embedding_dimension

    def _interact(self, inputs: Tensor) -> Tensor:
        return self.cross(inputs)


class WukongArch(Arch):
    """Wukong: a stack of layers over the dense vector and the embeddings, or the towers' vectors of
    width D."""

    def _build(self, s: ModelSettings) -> None:
        vectors, layers = 1 + self.width // self.dimension, []
        for _ in range(s.wukong.layers):
            layers.append(
                WukongLayer(
                    vectors,
                    self.dimension,
                    s.wukong.factorized,
                    s.wukong.compressed,
                    s.wukong.rank,
                    s.wukong.widths,
                )
            )
            vectors = layers[-1].out_vectors
        self.layers = nn.Sequential(*layers)
        self.out_features = vectors * self.dimension

    def _dense_dimension(self, settings: ModelSettings) -> int:
        return settings.interaction_dimension

    def _interact(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs.unflatten(1, (-1, self.dimension))).flatten(1)  # of [B, 1 + V, D]


ARCHITECTURES = {"dlrm": DotArch, "dcn": CrossArch, "wukong": WukongArch}


class Ranker(nn.Module):
    """One embedding table per categorical feature, a dense arch, an interaction and an over arch.

    ``towers`` has the positions of each tower's members in ``pieces``, which are features or column
    slices of them, with a table each; None: the features of ``schema.categorical``.
    ``table_device="meta"`` creates tables without memory, for the engine to shard. ``peers`` is set
    by the tower transform; this rank then computes only its host's towers, for its peers' examples.
    Each of ``schema.tasks`` has a linear head whose bias starts at log(p / (1 - p)) of its initial
    base rate; the main task's weights do not depend on the others. Two rankers in one model need
    different ``table_prefix``. :meth:`embed` pools sequences by attention, so layers above it see
    one vector per feature.

    Raises:
        InputError: the sequences do not match the schema, or the partition has column slices as
            well.
    """

    def __init__(
        self,
        schema: Schema,
        settings: ModelSettings,
        towers: list[list[int]] | None,
        table_device: str,
        table_prefix: str = TABLE_PREFIX,
        pieces: list[Piece] | None = None,
    ) -> None:
        super().__init__()
        pieces = pieces or whole_pieces([feature.name for feature in schema.categorical])
        self.dense_width = schema.dense_width
        self.embedding_dimension = settings.embedding_dimension
        self.peers: Peers | None = None
        check_sequences(schema, settings)
        if settings.sequences and not are_whole(pieces):
            raise InputError(
                "partition: column slices together with sequences are not supported; set "
                "slice_above: null"
            )
        widths = settings.dense_layers
        self.dense_arch = perceptron(schema.dense_width, widths)
        dense_features = widths[-1] if widths else schema.dense_width
        self.own_weights = own_weights(schema, settings)
        self.interaction = ARCHITECTURES[settings.architecture](
            dense_features, towers, pieces, settings, self.own_weights
        )
        self.over_arch = perceptron(self.interaction.out_features, settings.over_layers)
        self.hidden_size = settings.over_layers[-1]
        self.representation_size = self.hidden_size + self.own_weights
        self.output = nn.Linear(self.hidden_size, 1)
        nn.init.constant_(self.output.bias, log_odds(schema.initial_base_rate))
        self.further_tasks, self.further_output = schema.tasks[1:], None
        if self.further_tasks:
            self.further_output = nn.Linear(self.hidden_size, len(self.further_tasks))
            with torch.no_grad():
                self.further_output.bias.copy_(
                    torch.tensor([log_odds(rate) for rate in schema.further_base_rates])
                )
        self.linear = _linear_term(schema) if self.own_weights else None
        if self.linear is not None:
            for head in (self.output, self.further_output):
                if head is not None:
                    nn.init.zeros_(head.weight)
        # After the dense part, so that it starts the same with and without sequences.
        self.sequences = SequencePooling(
            settings.sequences, settings.embedding_dimension, self.own_weights
        )
        # Last, so that its random draws do not affect the dense part.
        tables = table_configs(
            schema,
            settings.embedding_dimension,
            table_prefix,
            settings.sequences,
            pieces,
            self.own_weights,
        )
        self.hold(pieces, tables, table_device)

    def hold(
        self, pieces: list[Piece], tables: list[EmbeddingBagConfig], table_device: str
    ) -> None:
        """From now on look up only ``pieces``, in ``tables``."""
        self.pieces = pieces
        self.feature_names = list(dict.fromkeys(piece.feature for piece in pieces))
        self.embeddings = bag_collection(tables, torch.device(table_device))
        self._keys = [key for keys in get_embedding_names_by_table(tables) for key in keys]

    def represent(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """[B, W] float32 and ids of F features -> [B, H + T]; see :meth:`head`."""
        return self._represent(dense, self.tower_outputs(sparse))

    def _represent(self, dense: Tensor, outputs: list[Tensor]) -> Tensor:
        crossed, first_order = self.interaction.interact(self.dense_arch(dense), outputs)
        hidden = self.over_arch(crossed)
        if self.linear is None:
            return hidden
        first_order = first_order + self.linear(dense)
        return torch.cat([hidden, first_order.to(hidden.dtype)], dim=1)

    def tower_outputs(self, sparse: KeyedJaggedTensor) -> list[Tensor]:
        """Outputs [B, O] of the towers, in the model's order; without towers, the embeddings [B, F
        * N]."""
        if self.peers is None:
            return self.interaction.compress(self.embed(sparse))
        embeddings = self.embed(self.peers.exchange_ids(sparse))
        return self.peers.exchange_outputs(self.interaction.compress(embeddings))

    def represent_embedded(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """[B, W], [B, P, N] -> [B, H + T]: the ranker above its tables."""
        return self._represent(dense, self.interaction.compress(embeddings))

    def embed(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Pooled embeddings in the schema's order: [B, P, N]; columns outside a slice are 0."""
        found = self.embeddings(sparse)
        if not are_whole(self.pieces):
            return in_own_columns(
                found, dict(zip(self._keys, self.pieces, strict=True)), self.embedding_dimension
            )
        names = self.sequences.columns(self.feature_names)
        return self.pool(in_schema_order(found, names, self.embedding_dimension), sparse)

    def pool(self, columns: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """Pool looked-up embeddings [B, C, N], with one entry per feature or sequence position,
        using the ids -> [B, F, N]."""
        return (
            self.sequences(columns, self.feature_names, sparse)
            if self.sequences.sequences
            else columns
        )

    def head(self, representation: Tensor) -> Tensor:
        """[B, H + T] -> serving logit [B].

        The first H columns are the over arch's output, the others each task's first-order logit.
        """
        return self.output(representation[:, : self.hidden_size]).squeeze(1) + self.first_order(
            representation, 0
        )

    def first_order(self, representation: Tensor, task: int) -> Tensor | float:
        """[B, H + T] -> the first-order logit [B] of the ``task``-th task; 0 if there is none."""
        return representation[:, self.hidden_size + task] if self.own_weights else 0.0

    def heads(self, representation: Tensor) -> dict[str, Tensor]:
        """[B, H + T] -> {"serving": logit [B] of the main task, and each further task's by
        name}."""
        outputs = {SERVING: self.head(representation)}
        if self.further_output is not None:
            further = self.further_output(representation[:, : self.hidden_size]).unbind(1)
            for place, (task, logit) in enumerate(zip(self.further_tasks, further, strict=True)):
                outputs[task] = logit + self.first_order(representation, place + 1)
        return outputs

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Logits [B] by name; see :meth:`heads`."""
        return self.heads(self.represent(dense, sparse))


def own_weights(schema: Schema, settings: ModelSettings) -> int:
    """T: how many leading columns of every embedding are first-order weights of the id, one per
    task.

    Raises:
        InputError: there are more tasks than columns.
    """
    if not settings.first_order:
        return 0
    if len(schema.tasks) > settings.embedding_dimension:
        raise InputError(
            f"model: embedding_dimension {settings.embedding_dimension} has no column for each of "
            f"{len(schema.tasks)} tasks; make it larger, or set first_order: false"
        )
    return len(schema.tasks)


def _linear_term(schema: Schema) -> nn.Linear:
    """[B, W] -> [B, T]; starts at the difference between each domain's base rate and the overall
    one, in logits.

    The last columns of the dense input are the one-hot domain; the rates are the main task's.
    """
    linear = nn.Linear(schema.dense_width, len(schema.tasks), bias=False)
    nn.init.zeros_(linear.weight)
    rates = schema.domain_base_rates
    if rates:
        offsets = [log_odds(rate) - log_odds(schema.initial_base_rate) for rate in rates]
        with torch.no_grad():
            linear.weight[0, -len(rates) :] = torch.tensor(offsets)
    return linear


def log_odds(rate: float) -> float:
    """log(p / (1 - p)) of ``rate``, which is kept away from 0 and 1."""
    kept = min(max(rate, SMALLEST_RATE), 1 - SMALLEST_RATE)
    return math.log(kept / (1 - kept))


def in_schema_order(pooled: KeyedTensor, names: list[str], dimension: int) -> Tensor:
    """Pooled embeddings of ``names``, in this order: [B, F, N]."""
    keys = pooled.keys()
    columns = pooled.values().view(-1, len(keys), dimension)  # [B, F, N], no copy
    if keys == names:
        return columns
    order = torch.tensor([keys.index(name) for name in names])  # a plan may reorder the columns
    return columns.index_select(1, order.to(columns.device))


def in_own_columns(pooled: KeyedTensor, pieces: dict[str, Piece], dimension: int) -> Tensor:
    """Pooled embeddings of ``pieces``, in this order: [B, P, N], where each fills its own columns
    and the others are 0."""
    places = {key: (place * dimension, piece) for place, (key, piece) in enumerate(pieces.items())}
    found = [places[key] for key in pooled.keys()]  # noqa: SIM118
    columns = torch.tensor(
        [start + column for start, piece in found for column in piece.columns(dimension)]
    )
    values = pooled.values()  # [B, own columns]
    whole = values.new_zeros(values.shape[0], len(pieces) * dimension)
    return whole.index_copy(1, columns.to(values.device), values).unflatten(
        1, (len(pieces), dimension)
    )


def table_configs(
    schema: Schema,
    dimension: int,
    prefix: str = TABLE_PREFIX,
    sequences: Mapping[str, SequenceSettings] | None = None,
    pieces: Sequence[Piece] | None = None,
    zero_columns: int = 0,
) -> list[EmbeddingBagConfig]:
    """A table for each of ``pieces``, by default for each categorical feature.

    Lists are mean-pooled; ``sequences`` are looked up position by position, in their own table or
    their target's. The caller writes the weights; the first ``zero_columns`` columns of a feature
    start at 0.
    """
    features, chosen = {feature.name: feature for feature in schema.categorical}, sequences or {}
    tables = []
    for piece in pieces or whole_pieces(list(features)):
        feature, own = features[piece.feature], chosen.get(piece.feature)
        if own is not None and own.shares_table:
            continue
        shared = {
            name: s.length
            for name, s in chosen.items()
            if s.shares_table and s.target == feature.name
        }
        lengths = shared if own is None else {feature.name: own.length}
        names = [feature.name] if own is None else []
        names += [
            position
            for name, length in lengths.items()
            for position in position_names(name, length)
        ]
        pooling = PoolingType.MEAN if feature.kind == "list" and own is None else PoolingType.SUM
        common: dict[str, Any] = {
            "num_embeddings": feature.num_embeddings,
            "embedding_dim": len(piece.columns(dimension)),
        }
        common |= {
            "name": prefix + piece.name,
            "feature_names": names,
            "pooling": pooling,
            "init_fn": _leave,
        }
        tables.append(RankerBagConfig(**common, lengths=lengths, zero_columns=zero_columns))
    return tables


def _leave(weight: Tensor) -> Tensor:
    """Do not initialise: initial rows are written explicitly, by (seed, table, row)."""
    return weight
