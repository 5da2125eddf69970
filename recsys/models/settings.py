"""Size and shape of a ranker."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from recsys.config import Settings

PASS_THROUGH = "pass_through"


class TowerModuleSettings(Settings):
    """What a tower does to its features' embeddings; see recsys/models/tower_modules.py.

    ``kind``: ``dot`` (DLRM's), ``cross`` (DCN's), ``pass_through`` (nothing: towers move tables,
    not the model) or ``package.module:Class`` of a module of one's own, which may read ``options``
    and runs only with ``allow_code: true``; null: the architecture's. ``dot`` gives ``vectors``
    mixtures of the whole tower (the paper's p) and ``vectors_per_feature`` projections of each
    feature (c). ``cross`` has ``cross_layers`` of rank ``cross_rank`` (null: the model's) and one
    vector a tower; a tower of one feature is left as it is, or, with ``cross_singletons``, goes
    through the cross layers and is not projected.
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
    """Wukong's stack: ``layers``, each giving ``factorized`` + ``compressed`` vectors; see
    recsys/models/wukong.py.

    ``rank`` is that of the factorization's projection, ``widths`` of the perceptron above it.
    """

    layers: PositiveInt = 2
    factorized: PositiveInt = 8
    compressed: PositiveInt = 8
    rank: PositiveInt = 8
    widths: list[PositiveInt] = Field(default=[64])


class SequenceSettings(Settings):
    """How a list feature is pooled by attention from its target's embedding; see
    recsys/models/sequences.py.

    ``target``: the feature that asks, the candidate. ``length``: ids that are looked up, the newest
    (last) of the list. ``attention``: ``multi_head`` (softmax, ``heads`` that divide the
    embedding's dimension) or ``activation_unit`` (DIN's weights, which need not add up to 1, from a
    perceptron of ``widths``). ``shares_table``: the sequence has the target's table, as in DIN;
    false: a table of its own.
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

    ``dense_layers`` is the arch over the dense features; its output is projected to
    ``embedding_dimension``. ``over_layers`` stands above the interaction; its last width is the
    size of the representation that the heads read. ``cross_*`` are read by ``dcn`` only, ``wukong``
    by ``wukong``, ``tower_*`` only with ``towers: true``: one tower module a group of the
    partition, each output vector ``tower_dimension`` wide. ``sequences``: list features pooled by
    attention, by name; the others are mean-pooled.

    ``first_order``: the logit also has a weight of each id's own, the first column of its embedding
    (a column per task), and a linear term of the dense features. The deep part starts at 0 then.

    Attributes:
        cross_layers: of a dcn.
        cross_rank: of each cross layer's low-rank weight.
        towers: whether features are grouped by towers of the partition.
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
        """The kind of tower module, the architecture's own where none is given."""
        return (
            self.tower_module.kind
            or {"dlrm": "dot", "dcn": "cross", "wukong": "dot"}[self.architecture]
        )

    @property
    def interaction_dimension(self) -> int:
        """Width of the vectors that DLRM's dots are taken of and Wukong's layers mix."""
        compressed = self.towers and self.tower_kind != PASS_THROUGH
        return self.tower_dimension if compressed else self.embedding_dimension
