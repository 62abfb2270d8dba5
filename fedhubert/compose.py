"""From ``conf/`` and overrides to a validated :class:`~fedhubert.config.Config`. The only module
that imports Hydra.

Hydra gets the models' defaults as choices beside the files of ``conf/``, which hold only what
differs from them.
"""

import importlib.util
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from fedhubert.config import Config, Recipe, validate
from fedhubert.config.catalog import defaults, models_in
from fedhubert.config.explain import near_names
from fedhubert.errors import ConfigError

RECIPES = "recipe"
"""Folder of recipes below ``conf/``: no group of a run's configuration."""
_UNKNOWN = object()

OmegaConf.register_new_resolver("add", lambda left, right: int(left) + int(right), replace=True)

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


def config_folder() -> Path:
    """Return the folder of the YAML files: inside the installed package, or beside it in a
    checkout."""
    package = Path(__file__).resolve().parent
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
            f"no recipe {name!r}: there are {', '.join(recipe_names())}, or give the path of a .yaml file"
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


def compose(overrides: Sequence[str]) -> Config:
    """Compose ``conf/config.yaml`` with Hydra ``overrides`` (``federated.num_rounds=20``,
    ``experiment=demo``) and validate the result.

    Raises:
        ConfigError: an override that Hydra cannot parse, an unknown key or group, a value out of
            range; named by its dotted key.
    """
    check_overrides(overrides)
    return to_config(_composed(overrides))


def _composed(overrides: Sequence[str]) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            return hydra.compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from None


def check_overrides(overrides: Sequence[str], *, sweeping: bool = False) -> None:
    """Raise :class:`ConfigError` for an override that Hydra's grammar does not take as it is meant,
    with what to write instead; several values are one override's only where they are swept over."""
    _check_sweeper(overrides)
    parser = OverridesParser.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        quoted = _shell(key, hydra_quoted(value))
        try:
            parsed = parser.parse_override(override)
        except HydraException as error:
            said = " ".join(str(error).split(" See https")[0].split("\nSee https")[0].split())
            if not equals:
                raise ConfigError(f"`{override}` is not KEY=VALUE") from None
            raise ConfigError(
                f"`{override}` cannot be read as KEY=VALUE ({said}): a value with = ~ # ! & ; brackets, quotes or letters beyond ASCII "
                f"goes into quotes, and these into the shell's: {quoted}",
                setting=key,
            ) from None
        if parsed.is_sweep_override() and not sweeping:
            raise ConfigError(
                f"`{override}` names several values: as one value {quoted}, as a list {_shell(key, f'[{value}]')}, "
                "as one run for each `fedhubert train -m`",
                setting=key,
            )


def hydra_quoted(value: str) -> str:
    """Return a value with any characters in it as Hydra's grammar wants it."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return '"' + escaped.replace("${", "\\${") + '"'


def shell_override(key: str, value: str) -> str:
    """Return ``key=value`` for printed commands: as it is where shell and Hydra take it so, else in
    the quotes that both want."""
    plain = re.fullmatch(r"[A-Za-z_/][\w./:-]*", value, re.ASCII) is not None
    return _shell(key, value if plain else hydra_quoted(value))


def _shell(key: str, value: str) -> str:
    return shlex.quote(f"{key}={value}")


def sweep_jobs(overrides: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Return the overrides of every job of a sweep, and those that a search chooses (an
    ``interval``), which are in no job."""
    check_overrides(overrides, sweeping=True)
    lists: list[list[str]] = []
    searched = []
    for parsed in OverridesParser.create().parse_overrides(list(overrides)):
        key = parsed.get_key_element()
        if not parsed.is_sweep_override():
            lists.append([str(parsed.input_line)])
        elif parsed.is_discrete_sweep():
            lists.append([f"{key}={value}" for value in parsed.sweep_string_iterator()])
        else:
            searched.append(str(parsed.input_line))
    return [(list(job), searched) for job in itertools.product(*lists)]


def describe_sweep(overrides: Sequence[str], show: Callable[[Config], str]) -> str:
    """Return what ``show`` makes of the configuration of every job of a sweep, as YAML documents
    under the overrides that differ."""
    jobs = sweep_jobs(overrides)
    documents = []
    for number, (job, searched) in enumerate(jobs):
        config = compose(job)
        if config.out:
            config = config.model_copy(update={"out": str(Path(config.out, str(number)))})
        differs = [text for text in job if any(text not in other for other, _ in jobs)]
        head = " ".join(
            [f"# job {number}:", *differs, *(f"{text} (searched)" for text in searched)]
        )
        documents.append(f"{head}\n{show(config)}")
    return "---\n".join(documents)


def _check_sweeper(overrides: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for Optuna's search without Optuna."""
    asked = any(re.match(r"\+*(sweep|hydra/sweeper)=optuna", text) for text in overrides)
    if asked and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "sweep=optuna needs Hydra's plugin for it: pip install 'fedhubert[sweep]'"
        )


def to_config(composed: DictConfig) -> Config:
    """Resolve interpolations and validate; raises :class:`ConfigError`."""
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
    except (
        OmegaConfBaseException
    ) as error:  # an interpolation that cannot be resolved, for example an environment variable
        raise ConfigError(_explain(error)) from None
    if missing:
        raise ConfigError(
            f"no value for {', '.join(missing)}: give it on the command line, for example `{missing[0]}=...`",
            setting=missing[0],
        )
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from None
    assert isinstance(values, dict)
    return validate(Config, {str(key): value for key, value in values.items()})


def amend(values: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """Return a saved configuration with ``KEY=VALUE`` overrides of single keys (no config groups:
    ``model=...`` would mix two of them).

    Raises:
        ConfigError: an override without ``=``, of a whole group, of an unknown key, or with a value
            out of range.
    """
    try:
        amended = OmegaConf.create(dict(values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"the saved configuration cannot be read: {_explain(error)}") from None
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"`{override}` is not KEY=VALUE")
        try:
            known = OmegaConf.select(amended, key, throw_on_missing=False, default=_UNKNOWN)
            if known is _UNKNOWN or isinstance(known, DictConfig):
                reason = (
                    "is a whole group; set its keys one by one"
                    if isinstance(known, DictConfig)
                    else "is unknown"
                )
                raise ConfigError(f"key `{key}` {reason}", setting=key)
            OmegaConf.update(amended, key, OmegaConf.from_dotlist([f"v={value}"])["v"])
        except OmegaConfBaseException as error:
            raise ConfigError(_explain(error), setting=key) from None
    plain = OmegaConf.to_container(amended, resolve=False)  # a file's ${oc.env:SECRET} is text
    assert isinstance(plain, dict)
    return validate(Config, {str(key): value for key, value in plain.items()})


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML, in the order of the config classes."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def multirun(overrides: Sequence[str], job: Callable[[str, Callable[[], Config]], Any]) -> None:
    """Run Hydra's multirun: ``job`` once per combination, each with a folder of its own below
    ``out``, or the sweep's folder.

    ``job`` is given the folder and a function that returns the configuration, or raises
    :class:`ConfigError`.

    Raises:
        ConfigError: overrides that Hydra cannot read or does not know, or a search without its
            plugin.
    """
    _composed(sweep_jobs(overrides)[0][0])

    def one(composed: DictConfig) -> Any:
        sweep, given = HydraConfig.get().sweep, OmegaConf.select(composed, "out")
        out = str(Path(given, sweep.subdir) if given else Path(sweep.dir, sweep.subdir).absolute())
        return job(out, lambda: to_config(composed).model_copy(update={"out": out}))

    program, arguments = sys.argv[0], sys.argv
    sys.argv = [program, "--multirun", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(
            one
        )()
    finally:
        sys.argv = arguments


def _explain(error: Exception) -> str:
    """Hydra's messages span lines and end in advice for developers; keep what names the key, and
    offer near misses."""
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
