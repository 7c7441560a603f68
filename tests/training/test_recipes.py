"""If these fail, a committed recipe cannot be trained as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from training.detector import DetectorRecipe
from training.networks.registry import NETWORKS
from training.pose import PoseRecipe
from training.recipe import RecipeError, read_recipe

RECIPES = sorted((ROOT / "training" / "recipes").glob("*.yaml"))
POSE = [path for path in RECIPES if path.stem.startswith("pose_")]
DETECTOR = [path for path in RECIPES if path.stem.startswith("detector_")]
VARIABLE = re.compile(r"\$\{(\w+)\}")


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every folder that a recipe asks for."""
    for path in RECIPES:
        for name in VARIABLE.findall(path.read_text()):
            monkeypatch.setenv(name, str(tmp_path / name))


@pytest.mark.parametrize("path", POSE, ids=lambda path: path.stem)
def test_pose_recipe_describes_a_network_that_its_supervision_fits(path: Path) -> None:
    recipe = read_recipe(path, PoseRecipe)
    with torch.device("meta"):
        network = recipe.network.build(len(recipe.joints), [radius.name for radius in recipe.radii])
    recipe.supervision.check(network.units, recipe.joints)
    if recipe.init_backbone:
        assert hasattr(network, "backbones")
    assert recipe.schedule.factor(recipe.steps - 1, recipe.steps) < 0.5, "the learning rate never falls"


@pytest.mark.parametrize("path", DETECTOR, ids=lambda path: path.stem)
def test_detector_recipe_can_be_read(path: Path) -> None:
    assert read_recipe(path, DetectorRecipe).steps > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_variables_that_are_not_everybodys_are_explained_at_the_top(path: Path) -> None:
    text = path.read_text()
    top = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert [v for v in set(VARIABLE.findall(text)) - {"TRITONPOSE_DATA"} if v not in top] == []


@pytest.mark.parametrize("path", POSE, ids=lambda path: path.stem)
def test_no_recipe_trains_on_what_is_measured(path: Path) -> None:
    for source in read_recipe(path, PoseRecipe).data:
        assert "val" not in source.annotations.name and "test" not in source.annotations.name


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCO")
    with pytest.raises(RecipeError, match=r"pose_cpn.*\$\{COCO\}.*not set"):
        read_recipe(ROOT / "training" / "recipes" / "pose_cpn.yaml", PoseRecipe)


def test_every_network_has_a_recipe_for_gpus_and_one_for_cpus() -> None:
    def networks(paths: list[Path]) -> set[str]:
        return {read_recipe(path, PoseRecipe).network.name for path in paths}

    small = [path for path in POSE if path.stem.endswith(("_light", "_slim", "_small"))]
    assert networks(small) == set(NETWORKS)
    assert networks([path for path in POSE if path not in small]) == set(NETWORKS)
