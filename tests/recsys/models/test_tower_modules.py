"""Tower modules: widths, numbers, identities, one's own, and the models that they make."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys.config import InputError
from recsys.models.settings import ModelSettings
from recsys.models.tower_modules import CrossTower, DotTower, PassThrough, build_tower, tower_width


class MeanTower(nn.Module):
    """A tower module as anyone would write it: the projected mean of the tower's embeddings."""

    def __init__(self, features: int, settings: ModelSettings) -> None:
        super().__init__()
        self.out_features = settings.tower_dimension
        self.scale = settings.tower_module.options.get("scale", 1.0)
        self.project = nn.Linear(settings.embedding_dimension, self.out_features)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, F, N] -> [B, D]."""
        return self.project(self.scale * embeddings.mean(dim=1))


def settings(**tower_module: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "towers": True,
            "embedding_dimension": 8,
            "tower_dimension": 4,
            "tower_module": tower_module,
        }
    )


@pytest.mark.parametrize(("mixed", "each"), [(0, 1), (1, 0), (2, 1), (3, 2)])
def test_a_dot_tower_mixes_the_tower_and_projects_each_feature(mixed: int, each: int) -> None:
    tower = DotTower(3, settings(vectors=mixed, vectors_per_feature=each))
    embeddings = torch.randn(5, 3, 8)
    output = tower(embeddings)
    assert output.shape == (5, tower.out_features) == (5, 4 * (mixed + each * 3))
    for example in range(5):
        row = embeddings[example]
        parts = [] if tower.mix is None else [tower.mix.weight @ row.reshape(-1) + tower.mix.bias]
        if tower.project is not None:
            parts += [
                tower.project.weight @ row[feature] + tower.project.bias for feature in range(3)
            ]
        torch.testing.assert_close(output[example], torch.cat(parts))


def test_a_cross_tower_gives_one_vector() -> None:
    tower = CrossTower(3, settings(cross_layers=2, cross_rank=2))
    assert tower(torch.randn(5, 3, 8)).shape == (5, tower.out_features) == (5, 4)


def test_a_single_feature_passes_unchanged() -> None:
    embeddings = torch.randn(5, 1, 8)
    same_width = settings(vectors=1, vectors_per_feature=0).model_copy(
        update={"tower_dimension": 8}
    )
    for tower in (DotTower(1, same_width), CrossTower(1, settings()), PassThrough(1, settings())):
        assert torch.equal(tower(embeddings), embeddings[:, 0])
        assert not list(tower.parameters())


def test_a_crossed_single_feature_keeps_its_width() -> None:
    tower = CrossTower(1, settings(cross_singletons=True, cross_rank=2))
    embeddings = torch.randn(5, 1, 8)
    assert tower(embeddings).shape == (5, tower.out_features) == (5, 8)
    assert not torch.equal(tower(embeddings), embeddings[:, 0])


def test_a_module_of_ones_own_is_named_by_its_import_path() -> None:
    chosen = settings(kind=f"{__name__}:MeanTower", allow_code=True, options={"scale": 2.0})
    tower = build_tower(3, chosen)
    assert tower_width(tower) == 4
    assert type(tower).__name__ == "MeanTower"
    embeddings = torch.randn(5, 3, 8)
    torch.testing.assert_close(tower(embeddings), tower.project(2.0 * embeddings.mean(dim=1)))  # type: ignore[operator]


@pytest.mark.parametrize(
    "kind", ["dott", "no_such_package:Tower", "recsys.models.tower_modules:Missing"]
)
def test_an_unknown_kind_is_an_input_error(kind: str) -> None:
    with pytest.raises(InputError, match=r"^ModelSettings: key 'tower_module.kind'") as error:
        build_tower(3, settings(kind=kind, allow_code=True))
    assert "dot, cross, pass_through or package.module:Class" in str(error.value)


@pytest.mark.parametrize("kind", ["os:system", "../x:Y", "my_towers:MeanTower"])
def test_a_class_of_ones_own_has_to_be_allowed_in_words(kind: str) -> None:
    with pytest.raises(ValueError, match=r"runs code .* allow it by allow_code: true"):
        settings(kind=kind)


def test_dlrm_takes_whole_vectors_only() -> None:
    with pytest.raises(
        InputError, match="gives 8 numbers for 1 features; dlrm takes them as vectors of 5"
    ):
        build_tower(1, settings(kind="cross").model_copy(update={"tower_dimension": 5}))
    with pytest.raises(ValueError, match="at least one vector"):
        settings(vectors=0, vectors_per_feature=0)
