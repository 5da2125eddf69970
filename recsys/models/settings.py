"""Size and shape of a ranker."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from recsys.config import Settings

PASS_THROUGH = "pass_through"


class TowerModuleSettings(Settings):
    """What a tower does to its features' embeddings; see recsys/models/tower_modules.py.

    Attributes:
        kind: dot (DLRM's), cross (DCN's), pass_through (nothing: towers place tables and do not
            change the model) or package.module:Class for a module of your own; null: the
            architecture's kind.
        allow_code: whether kind may be a class of your own, whose code then runs.
        vectors: for dot: mixtures of all the tower's embeddings (the paper's p).
        vectors_per_feature: for dot: projections of each feature (the paper's c).
        cross_layers: for cross: number of cross layers; the tower gives one vector.
        cross_rank: for cross: rank of their weights; null: the model's.
        cross_singletons: whether a tower of one feature goes through the cross layers too, instead
            of passing through.
        options: arguments of a class of your own.
    """

    kind: str | None = None
    allow_code: bool = False
    vectors: NonNegativeInt = 0
    vectors_per_feature: NonNegativeInt = 1
    cross_layers: PositiveInt = 1
    cross_rank: PositiveInt | None = None
    cross_singletons: bool = False
    options: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _runs_only_what_is_allowed(self) -> "TowerModuleSettings":
        if self.kind is not None and ":" in self.kind and not self.allow_code:
            raise ValueError(
                f"kind: {self.kind} runs code that is not this library's; allow it by "
                "allow_code: true"
            )
        return self

    @model_validator(mode="after")
    def _gives_something(self) -> "TowerModuleSettings":
        if self.vectors + self.vectors_per_feature == 0:
            raise ValueError(
                "vectors and vectors_per_feature are both 0; a tower must give at least one vector"
            )
        return self


class WukongSettings(Settings):
    """Wukong's stack of layers; see recsys/models/wukong.py. Each layer gives ``factorized`` +
    ``compressed`` vectors.

    Attributes:
        layers: number of layers.
        factorized: vectors per layer from the factorization machine.
        compressed: vectors per layer from the linear compression.
        rank: rank of the factorization's projection.
        widths: hidden widths of the perceptron above it.
    """

    layers: PositiveInt = 2
    factorized: PositiveInt = 8
    compressed: PositiveInt = 8
    rank: PositiveInt = 8
    widths: list[PositiveInt] = Field(default=[64])


class SequenceSettings(Settings):
    """How a list feature is pooled by attention, with its target's embedding as the query; see
    recsys/models/sequences.py.

    Attributes:
        target: the feature whose embedding is the query, such as the candidate item.
        length: ids that are looked up: the newest (last) of the list.
        attention: multi_head (softmax) or activation_unit (DIN's weights, which need not sum to 1).
        heads: for multi_head: heads; they must divide the embedding's dimension.
        widths: for activation_unit: hidden widths of its perceptron.
        shares_table: true: the sequence uses the target's table, as in DIN; false: its own.
    """

    target: str
    length: PositiveInt = 20
    attention: Literal["multi_head", "activation_unit"] = "multi_head"
    heads: PositiveInt = 1
    widths: list[PositiveInt] = Field(default=[32])
    shares_table: bool = False


class ModelSettings(Settings):
    """A DLRM (pairwise dots), DCNv2 (low-rank cross layers) or Wukong (stacked factorization
    machines) ranker.

    Attributes:
        architecture: how the dense vector and the embeddings interact.
        embedding_dimension: width of the embeddings; a multiple of 4.
        dense_layers: widths of the arch over the dense features; its output is projected to the
            embeddings' width.
        over_layers: widths of the arch above the interaction; the last is the size of the
            representation that the heads read.
        cross_layers: for dcn: number of cross layers.
        cross_rank: for dcn: rank of each cross layer's weight.
        wukong: for wukong: sizes of its layers.
        towers: whether each group of the partition has a tower module.
        tower_dimension: with towers: width of each of a tower's output vectors.
        tower_module: with towers: what a tower does.
        sequences: list features that are pooled by attention, by name; others are mean-pooled.
        first_order: whether the logit also has a weight per id (the first column of its embedding,
            one column per task) and a linear term of the dense features; the deep part then starts
            at 0.
    """

    architecture: Literal["dlrm", "dcn", "wukong"] = "dlrm"
    embedding_dimension: PositiveInt = Field(default=16, multiple_of=4)
    dense_layers: list[PositiveInt] = Field(default=[64])
    over_layers: list[PositiveInt] = Field(default=[128, 64], min_length=1)
    cross_layers: PositiveInt = 2
    cross_rank: PositiveInt = 32
    wukong: WukongSettings = WukongSettings()
    towers: bool = False
    tower_dimension: PositiveInt = 8
    tower_module: TowerModuleSettings = TowerModuleSettings()
    sequences: dict[str, SequenceSettings] = Field(default={})
    first_order: bool = True

    @property
    def tower_kind(self) -> str:
        """The kind of tower module; the architecture's own if none is given."""
        return (
            self.tower_module.kind
            or {"dlrm": "dot", "dcn": "cross", "wukong": "dot"}[self.architecture]
        )

    @property
    def interaction_dimension(self) -> int:
        """Width of the vectors in DLRM's dots and Wukong's layers."""
        compressed = self.towers and self.tower_kind != PASS_THROUGH
        return self.tower_dimension if compressed else self.embedding_dimension
