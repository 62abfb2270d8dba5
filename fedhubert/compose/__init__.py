"""From ``conf/`` and overrides to a validated :class:`~fedhubert.config.Config`. The only room that
imports Hydra.

Hydra gets the models' defaults as choices beside the files of ``conf/``, which hold only what
differs from them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from fedhubert.compose.overrides import check_overrides
from fedhubert.config import Config, validate
from fedhubert.config.catalog import defaults, models_in
from fedhubert.config.explain import near_names
from fedhubert.config.target_sets import other_classes
from fedhubert.errors import ConfigError

RECIPES = "recipe"
"""Folder of recipes below ``conf/``: no group of a run's configuration."""

OmegaConf.register_new_resolver("add", lambda left, right: int(left) + int(right), replace=True)
OmegaConf.register_new_resolver(
    "other_classes",
    lambda names, clusters: list(other_classes(names, int(clusters))),
    replace=True,
)

DEFAULT_CHOICES = {
    "data": "default",
    "federated": "standard",
    "client": "standard",
    "privacy": "none",
    "secure": "none",
    "targets": "kmeans",
}
"""Group -> the choice that is its model's defaults. Each model of a task is a choice by its
name."""


def _offer_defaults() -> None:
    """Give Hydra the models' defaults: ``defaults`` for the root, and a choice of each group that
    has several."""
    store = ConfigStore.instance()
    groups: dict[str, Any] = defaults(Config)
    for model in models_in(Config.model_fields["task"].annotation):
        store.store(name=model.model_fields["name"].default, group="task", node=defaults(model))
    for group, choice in DEFAULT_CHOICES.items():
        store.store(name=choice, group=group, node=groups[group])
    store.store(
        name="defaults",
        node={
            name: value for name, value in groups.items() if name not in {*DEFAULT_CHOICES, "task"}
        },
    )


_offer_defaults()


_EXPERIMENT_OF = {
    "task=ctc": "experiment=speech_mini_ctc",
    "task=classify": "experiment=speech_mini_keywords",
    "task=distill": "experiment=demo_distill",
}
"""Whose settings hold where a task is named and no experiment: the demo's are of pretraining."""


def config_folder() -> Path:
    """Return the folder of the YAML files: inside the installed package, or beside it in a
    checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(
        f"no conf/config.yaml in {package} or beside it: the installation is incomplete"
    )


def group_choices() -> dict[str, list[str]]:
    """Return the names of each config group's choices, for help texts."""
    folders = sorted(
        path for path in config_folder().iterdir() if path.is_dir() and path.name != RECIPES
    )
    choices = {folder.name: [file.stem for file in folder.glob("*.yaml")] for folder in folders}
    store = ConfigStore.instance()
    for group in (*DEFAULT_CHOICES, "task"):
        choices[group] = [*choices.get(group, []), *(Path(name).stem for name in store.list(group))]
    return {group: sorted(names) for group, names in sorted(choices.items())}


def compose(overrides: Sequence[str]) -> Config:
    """Compose ``conf/config.yaml`` with Hydra ``overrides`` (``federated.num_rounds=20``,
    ``experiment=demo``) and validate the result.

    Raises:
        ConfigError: an override that Hydra cannot parse, an unknown key or group, a value out of
            range; named by its dotted key.
    """
    check_overrides(overrides)
    return to_config(composition(overrides))


def names_experiment(overrides: Sequence[str]) -> bool:
    """Return whether ``overrides`` choose an experiment; else one is taken for them."""
    return any(text.startswith("experiment=") for text in overrides)


def composition(overrides: Sequence[str]) -> DictConfig:
    """Return what Hydra makes of ``overrides``, not yet validated; raises :class:`ConfigError`."""
    if not names_experiment(overrides):
        overrides = [
            *(_EXPERIMENT_OF[text] for text in overrides if text in _EXPERIMENT_OF),
            *overrides,
        ]
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            return hydra.compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from None


def to_config(composed: DictConfig) -> Config:
    """Resolve interpolations and validate; raises :class:`ConfigError`."""
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
    except (
        OmegaConfBaseException
    ) as error:  # an interpolation that cannot be resolved, for example an environment variable
        raise ConfigError(explain(error)) from None
    if missing:
        raise ConfigError(
            f"no value for {', '.join(missing)}: give it on the command line, for example "
            f"`{missing[0]}=...`",
            setting=missing[0],
        )
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None
    assert isinstance(values, dict)
    return validate(Config, {str(key): value for key, value in values.items()})


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML, in the order of the config classes."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def explain(error: Exception) -> str:
    """Return what one of Hydra's errors says: its messages span lines and end in advice for
    developers; keep what names the key, and offer near misses."""
    unknown = re.match(r"Could not override '(.+?)'", str(error))
    if unknown:
        key = unknown.group(1)
        return f"unknown key `{key}`{near_names(key)}"
    if isinstance(error, InterpolationResolutionError):
        reason = (
            str(error)
            .splitlines()[0]
            .removeprefix("KeyError raised while resolving interpolation: ")
            .strip('"')
        )
        return (
            f"{error.full_key}: {reason}; set it, or give {error.full_key}=... on the command line"
        )
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [
        line
        for line in lines
        if line and not line.startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return " ".join(
        line for line in lines if "provider=" not in line and line != "Config search path:"
    ).removeprefix("In 'config': ")
