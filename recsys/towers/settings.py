"""Settings of the towers."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recsys.config import InputError, Settings, filled_from
from recsys.models.settings import PASS_THROUGH, ModelSettings, TowerModuleSettings
from recsys.sharding.settings import CommunicationSettings
from recsys.training.settings import TrainSettings

PROBED = ("coherent", "diverse", "both", "spectral")
Balance = Literal["count", "bytes", "lookup_cost"]
PROBE_MODEL = ModelSettings(
    architecture="dlrm", embedding_dimension=16, dense_layers=[64], over_layers=[64, 32]
)


class PartitionSettings(Settings):
    """Settings of the tower partitioner.

    The strategies coherent, diverse, both and spectral train a probe on the first windows and
    average the cosines of its embeddings. The probe is not served, so it may overfit.

    Attributes:
        towers: number of towers, at most one per categorical feature; fewer if the log has fewer.
        strategy: coherent: features with similar embeddings together; diverse: dissimilar ones;
            both: tries the two and keeps the one whose ranker with towers has the lower NE on the
            probe's windows, from the second on. Baselines: spectral (on the same affinity), stride,
            random, greedy (the next heaviest feature to the lightest tower). manual:
            ``manual_towers``.
        balance: weight of a feature: count (1), bytes (of its table), or lookup_cost (embedding
            bytes looked up per example: rows x width).
        balance_ratio: largest tower's feature count over the smallest's; for other weights, the
            heaviest tower over the mean, or over what greedy reaches if that is more.
        slice_above: tables heavier than this fraction of a tower's mean share are first cut into as
            few equal column slices as needed (recsys/models/slices.py); null: none.
        dimensions: dimensions of the map on which features are clustered.
        stretch_distances: whether the distances of pairs are first mapped onto [0, 1]; a distance
            that all pairs have in common does not fit into few dimensions.
        probe: ranker: ``probe_model``; factorization: a factorization machine of its width, whose
            cosines follow the interactions more closely.
        probe_model: the ranker trained as the probe.
        probe_windows: number of windows, from the first on, that the probe trains on.
        probe_epochs: passes over these windows.
        affinity_batches: number of batches over which cosines are averaged.
        affinity_mean: how they are averaged: the mean of |cosine|, the root mean square, or |mean
            of cosine| (the paper leaves it open).
        affinity_centred: whether the mean embedding is subtracted first.
        steps: steps of the search for coordinates.
        learning_rate: learning rate of this search.
        restarts: restarts of this search; the best is kept.
        seed: seed of this search.
        manual_towers: for strategy manual: lists of feature names; slices may be named too.
    """

    towers: PositiveInt = 4
    strategy: Literal[
        "coherent", "diverse", "both", "spectral", "stride", "random", "greedy", "manual"
    ] = "coherent"
    balance: Balance = "count"
    balance_ratio: float = Field(default=2.0, ge=1.0)
    slice_above: PositiveFloat | None = None
    dimensions: PositiveInt = 2
    stretch_distances: bool = False
    probe: Literal["ranker", "factorization"] = "ranker"
    probe_model: Annotated[ModelSettings, filled_from(PROBE_MODEL)] = PROBE_MODEL
    probe_windows: PositiveInt = 3
    probe_epochs: PositiveInt = 1
    affinity_batches: PositiveInt = 20
    affinity_mean: Literal["absolute", "squared", "signed"] = "signed"
    affinity_centred: bool = False
    steps: PositiveInt = 1000
    learning_rate: PositiveFloat = 0.05
    restarts: PositiveInt = 4
    seed: int = 0
    manual_towers: list[list[str]] = Field(default=[])

    @model_validator(mode="after")
    def _slices_have_weights(self) -> "PartitionSettings":
        if self.slice_above is not None and (self.balance == "count" or self.strategy == "manual"):
            raise ValueError(
                "slice_above needs balance: bytes or lookup_cost, and a strategy other than manual"
            )
        return self


class TeacherTowerSettings(TowerModuleSettings):
    """The teacher's tower modules: :class:`TowerModuleSettings`, their width D, and whether there
    are any. By default towers only place tables and do not change the model.

    Attributes:
        enabled: whether the teacher has towers.
        kind: see :class:`TowerModuleSettings`.
        dimension: D, width of a tower's output vectors.
    """

    enabled: bool = True
    kind: str | None = PASS_THROUGH
    dimension: PositiveInt = 32


class TransformSettings(Settings):
    """The tower transform: each tower's tables and module stay on their own hosts.

    Attributes:
        enabled: whether towers stay on their own hosts.
        ranks_per_host: ranks per host; null: as in the training settings.
        hosts_per_tower: number of hosts over which a tower is spread.
        communication: precision of the tower outputs between hosts and of the teacher's other
            gradients; null: as in the training settings.
    """

    enabled: bool = True
    ranks_per_host: PositiveInt | None = 1
    hosts_per_tower: PositiveInt = 1
    communication: CommunicationSettings | None = None


class TowersSettings(Settings):
    """The towers. ``partition`` is read by the partition stage, the rest by every stage that runs
    the teacher.

    Attributes:
        partition: which features belong together.
        module: the module of each tower.
        transform: whether and how towers are placed on hosts.
    """

    partition: PartitionSettings = PartitionSettings()
    module: TeacherTowerSettings = TeacherTowerSettings()
    transform: TransformSettings = TransformSettings()

    def model(self, model: ModelSettings) -> ModelSettings:
        """``model`` with these tower modules.

        Raises:
            InputError: it sets its own.
        """
        self._check_absent(model, "module", "towers", "tower_dimension", "tower_module")
        module = self.module
        chosen = module.model_dump(exclude={"enabled", "dimension"})
        return model.with_values(
            {
                "towers": module.enabled,
                "tower_dimension": module.dimension,
                "tower_module": TowerModuleSettings.model_validate(chosen).placed_as(module),
            },
            {
                "towers": module.where("enabled"),
                "tower_dimension": module.where("dimension"),
            },
        )

    def train(self, train: TrainSettings) -> TrainSettings:
        """``train`` with this transform, if there are towers.

        Raises:
            InputError: it sets its own transform.
        """
        self._check_absent(train, "transform", "tower_transform", "hosts_per_tower")
        chosen = self.transform
        if not (chosen.enabled and self.module.enabled):
            return train
        values = {
            "tower_transform": True,
            "hosts_per_tower": chosen.hosts_per_tower,
            "ranks_per_host": chosen.ranks_per_host or train.ranks_per_host,
            "communication": chosen.communication or train.communication,
        }
        origins = {
            "tower_transform": chosen.where("enabled"),
            "hosts_per_tower": chosen.where("hosts_per_tower"),
            "ranks_per_host": chosen.where("ranks_per_host"),
        }
        if not chosen.ranks_per_host:
            del origins["ranks_per_host"]
        return train.with_values(values, origins)

    def _check_absent(self, given: Settings, section: str, *keys: str) -> None:
        """Check that ``given`` does not set ``keys``, which belong to ``section`` of these
        settings."""
        for key in keys:
            if key in given.model_fields_set:
                raise InputError(
                    f"{given.where(key)}: the teacher's towers are set elsewhere; leave it out "
                    f"(see {self.where(section)})"
                )
