"""Tower modules: each tower compresses its features' embeddings (DMT, arXiv 2403.00877, section
3.2).

A tower module is a class with ``__init__(features, settings)``, an attribute ``out_features`` and
``forward([B, F, N]) -> [B, out_features]``. DLRM treats the output as vectors of width
``tower_dimension``, so ``out_features`` must be a multiple of it. Any importable class will do::

    # my_towers.py
    class MeanTower(nn.Module):
        def __init__(self, features: int, settings: ModelSettings) -> None:
            super().__init__()
            self.out_features = settings.tower_dimension
            self.project = nn.Linear(settings.embedding_dimension, self.out_features)

        def forward(self, embeddings: Tensor) -> Tensor:
            return self.project(embeddings.mean(dim=1))

    # the settings of towers, as YAML
    module: {enabled: true, dimension: 32, kind: "my_towers:MeanTower", allow_code: true}
"""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.config import InputError
from recsys.models.layers import LowRankCrossNetwork
from recsys.models.settings import PASS_THROUGH, ModelSettings
from recsys.models.slices import Piece, are_whole, kept_columns


class DotTower(nn.Module):
    """DLRM's tower module: p mixtures of all embeddings and c projections of each feature (listing
    1).

    ``out_features`` is D (p + c F). A tower with one feature that would return one vector of the
    same width is the identity.
    """

    def __init__(self, features: int, settings: ModelSettings) -> None:
        super().__init__()
        dimension, out_dimension = settings.embedding_dimension, settings.tower_dimension
        mixed, each = settings.tower_module.vectors, settings.tower_module.vectors_per_feature
        self.identity = features == 1 and mixed + each == 1 and dimension == out_dimension
        self.mix = (
            nn.Linear(features * dimension, mixed * out_dimension)
            if mixed and not self.identity
            else None
        )
        self.project = (
            nn.Linear(dimension, each * out_dimension) if each and not self.identity else None
        )
        self.out_features = out_dimension * (mixed + each * features)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, F, N] -> [B, D (p + c F)], the mixtures first."""
        if self.identity:
            return embeddings.flatten(1)
        mixed = [] if self.mix is None else [self.mix(embeddings.flatten(1))]
        projected = [] if self.project is None else [self.project(embeddings).flatten(1)]
        parts = mixed + projected
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class CrossTower(nn.Module):
    """DCN's tower module: cross layers, then one vector of width D for the whole tower.

    Table 4's FLOPs match one vector per tower, not the |F| vectors in listing 2. A tower with one
    feature is not projected, and not crossed unless ``cross_singletons`` is set.
    """

    def __init__(self, features: int, settings: ModelSettings) -> None:
        super().__init__()
        width, chosen = features * settings.embedding_dimension, settings.tower_module
        single = features == 1
        self.out_features = width if single else settings.tower_dimension
        self.compress = nn.Sequential()
        if not single or chosen.cross_singletons:
            rank = chosen.cross_rank or settings.cross_rank
            self.compress.append(LowRankCrossNetwork(width, chosen.cross_layers, rank))
        if not single:
            self.compress.append(nn.Linear(width, self.out_features))

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, F, N] -> [B, D]; [B, N] for a single feature."""
        return self.compress(embeddings.flatten(1))


class PassThrough(nn.Module):
    """Returns the embeddings unchanged: the tower transform only (section 3.1)."""

    def __init__(self, features: int, settings: ModelSettings) -> None:
        super().__init__()
        self.out_features = features * settings.embedding_dimension

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, F, N] -> [B, F N]."""
        return embeddings.flatten(1)


class PassSlices(nn.Module):
    """Returns the own columns of a tower with slices unchanged; the other columns are 0 anyway."""

    columns: Tensor

    def __init__(self, pieces: Sequence[Piece], dimension: int) -> None:
        super().__init__()
        kept = kept_columns(pieces, dimension)
        self.register_buffer("columns", torch.tensor(kept), persistent=False)
        self.out_features = len(kept)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, F, N] -> [B, own columns]."""
        return embeddings.flatten(1).index_select(1, self.columns)


KINDS: dict[str, type[nn.Module]] = {
    "dot": DotTower,
    "cross": CrossTower,
    PASS_THROUGH: PassThrough,
}


def tower_of(pieces: Sequence[Piece], settings: ModelSettings) -> nn.Module:
    """The tower module of ``settings`` for ``pieces``; a pass-through module leaves out the zero
    columns of slices.

    Raises:
        InputError: as :func:`build_tower`.
    """
    if settings.tower_kind == PASS_THROUGH and not are_whole(pieces):
        return PassSlices(pieces, settings.embedding_dimension)
    return build_tower(len(pieces), settings)


def build_tower(features: int, settings: ModelSettings) -> nn.Module:
    """The tower module of ``settings`` for a tower of ``features`` features.

    Raises:
        InputError: the kind does not exist, or DLRM cannot split its output into vectors.
    """
    kind = settings.tower_kind
    tower = _tower_class(settings)(features, settings)
    width, dimension = tower_width(tower), settings.interaction_dimension
    if settings.architecture != "dcn" and width % dimension:
        raise InputError(
            f"model: tower_module {kind!r} gives {width} numbers for {features} features; dlrm "
            f"takes them as vectors "
            f"of {dimension}; choose a tower_dimension that divides {width}"
        )
    return tower


def tower_width(tower: nn.Module) -> int:
    """``out_features`` of a tower module."""
    return int(tower.out_features)  # type: ignore[arg-type]


def _tower_class(settings: ModelSettings) -> type[nn.Module]:
    kind = settings.tower_kind
    if kind in KINDS:
        return KINDS[kind]
    module, colon, name = kind.partition(":")
    where = settings.where("tower_module.kind")
    known = f"give {', '.join(KINDS)} or package.module:Class"
    if not colon:
        raise InputError(f"{where}: unknown kind {kind!r}; {known}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{where}: {error}; {known}") from error
