"""Recipes: YAML files that name the stages of several runs."""

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedhubert.compose import RECIPES, config_folder
from fedhubert.config import Recipe, validate
from fedhubert.errors import ConfigError


def recipe_names() -> list[str]:
    """Return the recipes that ship with the package."""
    return sorted(file.stem for file in (config_folder() / RECIPES).glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """Return a recipe by name, or from a YAML file; raises :class:`ConfigError` saying what is
    wrong with it."""
    path = (
        Path(name).expanduser()
        if name.endswith((".yaml", ".yml"))
        else config_folder() / RECIPES / f"{name}.yaml"
    )
    if not path.is_file():
        raise ConfigError(
            f"no recipe {name!r}: there are {', '.join(recipe_names())}, or give the path of a "
            ".yaml file"
        )
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise ConfigError(f"{path} is not a recipe: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a recipe: it has no `stages`")
    try:
        return validate(Recipe, {str(key): value for key, value in values.items()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", setting=error.setting) from None
