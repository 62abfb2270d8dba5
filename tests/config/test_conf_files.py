"""The files of ``conf/`` hold what differs from the models' defaults, and nothing else."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from fedhubert.compose import compose, config_folder, group_choices
from fedhubert.config import Config
from fedhubert.config.catalog import all_keys, defaults

CONF = config_folder()
GROUPS = sorted(
    path
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "recipe", "sweep")
)
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def plain(node: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(node, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def stated(path: Path) -> dict[str, Any]:
    """Return dotted key -> value of what a file sets."""
    everywhere = path.read_text().startswith("# @package _global_")
    values = {key: value for key, value in plain(OmegaConf.load(path)).items() if key != "defaults"}
    return dict(flat(values, "" if everywhere else f"{path.parent.name}."))


def repeated(path: Path, workplace: Path) -> list[str]:
    """Return what an experiment sets to the value that the composition has without it."""
    shutil.copytree(path.parents[1], workplace, dirs_exist_ok=True)
    bare = {"defaults": OmegaConf.load(path).get("defaults", [])}
    (workplace / "experiment" / path.name).write_text(
        "# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create(bare))
    )
    with hydra.initialize_config_dir(str(workplace), version_base="1.3"):
        without = dict(flat(plain(hydra.compose("config", [f"experiment={path.stem}"]))))
    return [key for key, value in stated(path).items() if key in without and without[key] == value]


def test_the_root_has_no_keys() -> None:
    assert plain(OmegaConf.load(CONF / "config.yaml")).keys() == {"defaults", "hydra"}


@pytest.mark.parametrize("path", GROUPS, ids=name_of)
def test_no_choice_of_a_group_repeats_a_default(path: Path) -> None:
    initial = dict(flat(defaults(Config)))
    found = stated(path)
    assert found and found.keys() <= all_keys().keys()
    assert [key for key, value in found.items() if key in initial and initial[key] == value] == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_an_experiment_holds_only_what_differs(path: Path, tmp_path: Path) -> None:
    assert repeated(path, tmp_path) == []


def test_what_is_repeated_is_found(tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    path = tmp_path / "conf" / "experiment" / "demo.yaml"
    path.write_text(path.read_text() + "seed: 0\nmodel:\n  num_layers: 2\n  num_heads: 6\n")
    assert repeated(path, tmp_path / "work") == ["seed", "model.num_layers"]


def test_the_models_defaults_are_choices_like_any_other() -> None:
    choices = group_choices()
    assert (choices["task"], choices["targets"]) == (
        ["classify", "ctc", "distill", "pretrain"],
        ["kmeans", "layer", "precomputed"],
    )
    assert (choices["data"], choices["federated"], choices["client"]) == (
        ["default"],
        ["standard"],
        ["standard"],
    )
    same = compose(
        [
            "federated=standard",
            "client=standard",
            "data=default",
            "privacy=none",
            "task=pretrain",
            "targets=kmeans",
        ]
    )
    assert same == compose([])
