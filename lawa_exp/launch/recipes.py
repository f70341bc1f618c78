"""Recipes of a model: as published, and fair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lawa_exp.config.rules import near
from lawa_exp.launch.conf import CONF
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig

DEFAULT_RECIPE = "as_published"


def chosen_model(overrides: list[str]) -> str:
    """The choice of the group `model` after `overrides`, of the default, an experiment or the command line."""
    from hydra import compose as compose_config
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose_config("config", overrides=overrides, return_hydra_config=True)
    return str(config.hydra.runtime.choices.model)


def with_recipe(overrides: list[str], model: str, recipe: str) -> list[str]:
    """`overrides` with the file of `model` in this recipe; UserError where it has none.

    conf/model/NAME.yaml is as published, conf/model/fair/NAME.yaml is that with what makes it fair.
    """
    name = model.rpartition("/")[2]
    forms = {folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in (CONF / "model").glob("*/")}
    if recipe not in (DEFAULT_RECIPE, *forms):
        raise UserError(f"recipe={recipe}: {near(recipe, [DEFAULT_RECIPE, *forms])}")
    if recipe != DEFAULT_RECIPE and name not in forms[recipe]:
        raise UserError(f"recipe={recipe}: model={name} has none; models that do: {', '.join(forms[recipe])}")
    choice = name if recipe == DEFAULT_RECIPE else f"{recipe}/{name}"
    return [*(o for o in overrides if o.split("=")[0] != "model"), f"model={choice}"]


def composed(loader: ConfigLoader, whole: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """An entry of a multirun in the recipe that it names, and its overrides. whole: the multirun's configuration."""
    config = loader.load_sweep_config(whole, list(overrides))
    model = config.hydra.runtime.choices.model
    named = with_recipe(list(overrides), model, str(config.recipe))
    if named[-1] != f"model={model}":
        config = loader.load_sweep_config(whole, named)
    return config, list(overrides)
