"""Would the command line take these words? Parsed and composed as each verb does it, and nothing is run."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from fedhubert import cli
from fedhubert.commands.baselines import _compare_parser, _split, _take_seeds, take_options
from fedhubert.compose import compose
from fedhubert.compose.recipes import recipe_names
from fedhubert.compose.saved import amend
from fedhubert.config import Config, validate
from fedhubert.config.catalog import all_keys
from fedhubert.federation.engine.recipe import StagePlan
from fedhubert.planning.inputs import Rates
from fedhubert.planning.words import _WORDS, Words
from tests.flower import parse_superlink

from .pages import REPOSITORY

_COMPOSED = (
    "targets.sets",
    "experiment",
    "data.manifest",
    "task.teacher",
    "targets.checkpoint",
    "targets.labels",
    "targets.num_clusters",
)
"""Keys without which some experiments do not compose, or of which others are derived."""


@cache
def _chosen(choices: tuple[str, ...]) -> Config:
    return compose(list(choices))


def composed(overrides: Sequence[str]) -> Config:
    """Return what the overrides compose to; those of groups as Hydra does it, once each, and those of single keys on top.

    Raises:
        FedhubertError: one that Hydra, the models or their bounds refuse.
    """
    OverridesParser.create().parse_overrides(list(overrides))
    keys = all_keys()
    single = [
        text
        for text in overrides
        if (name := text.partition("=")[0]) in keys
        and not keys[name].is_group
        and name not in _COMPOSED
    ]
    choices = tuple(text for text in overrides if text not in single)
    return amend(_chosen(choices).model_dump(mode="json"), single)


def one_job(overrides: Sequence[str]) -> list[str]:
    """Return the first job of a sweep: the first of each key's values, without what is Hydra's own."""
    jobs = []
    for text in overrides:
        name, _, value = text.partition("=")
        if not name.startswith(("hydra.", "+sweep")):
            jobs.append(text if value.startswith("[") else f"{name}={value.split(',')[0]}")
    return jobs


def _train(words: list[str]) -> None:
    flags = {word for word in words if word.startswith("-")}
    assert flags <= {"--cfg", "--explain", "-m", "--help"}, flags
    overrides = [word for word in words if word not in flags and word != "job"]
    for name in recipe_names():
        if f"experiment={name}_recipe" in overrides:
            return _recipe([name, *(text for text in overrides if "_recipe" not in text)])
    composed(one_job(overrides) if "-m" in flags else overrides)
    return None


def _central(words: list[str]) -> None:
    composed(take_options(words)[0])


def _compare(words: list[str]) -> None:
    overrides, flags = _split(words)
    _compare_parser().parse_args(flags)
    composed(_take_seeds(overrides)[0])


def _plan(words: list[str]) -> None:
    given = {name: value for name, _, value in (word.partition("=") for word in words)}
    validate(Words, {name: value for name, value in given.items() if name in _WORDS})
    rates = {name: given[name] for name in given if name in Rates.model_fields}
    assert "audio_s_per_s" in rates or given.get("measure") == "true"
    validate(Rates, {"audio_s_per_s": 1, **rates})
    own = _WORDS | set(Rates.model_fields)
    composed([word for word in words if word.partition("=")[0] not in own])


def _recipe(words: list[str]) -> None:
    StagePlan.make(words[0], words[1:])


def _fork(words: list[str]) -> None:
    parsed = cli._parser().parse_args(["fork", *words])
    amend(_chosen(("experiment=demo",)).model_dump(mode="json"), parsed.overrides)


_VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "central": _central,
    "compare": _compare,
    "plan": _plan,
    "recipe": _recipe,
    "fork": _fork,
    "superlink": parse_superlink,
}


def check_fedhubert(words: Sequence[str]) -> None:
    """Raise what the command ``fedhubert WORDS`` would raise before it does anything."""
    verb, *rest = words
    if verb in _VERBS and "--help" not in rest:
        _VERBS[verb](list(rest))
    else:
        assert verb in cli.VERBS or verb.startswith("-"), f"no verb {verb}"
        if "--help" not in words and "--version" not in words:
            cli._parser().parse_args(list(words))


def check_command(words: Sequence[str]) -> None:
    """Raise where a command names what is not there: a verb, flag, key, value, file, module, target of make or extra."""
    program, rest = Path(words[0]).name, list(words[1:])
    if program == "fedhubert":
        check_fedhubert(rest)
    elif program == "flwr" and "--run-config" in rest:
        given = rest[rest.index("--run-config") + 1]
        if overrides := re.fullmatch(r'overrides="(.*)"', given):
            composed(overrides[1].split())
    elif program == "sbatch":
        (script,) = [word for word in rest if word.endswith(".sbatch")]
        assert (REPOSITORY / script).is_file(), script
        composed(["data.manifest=x", *rest[rest.index(script) + 1 :]])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), rest
    elif program == "python" and rest[:1] == ["-m"]:
        module = REPOSITORY.joinpath(*rest[1].split("."))
        ours = rest[1].startswith(("tests", "fedhubert"))
        assert not ours or module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
        for path in (word for word in rest[2:] if word.startswith("tests/")):
            assert (REPOSITORY / path).exists(), path
    elif "/" in words[0] and words[0].endswith(".sh"):
        assert (REPOSITORY / words[0]).is_file(), words[0]
    elif program == "pip":
        text = (REPOSITORY / "pyproject.toml").read_text()
        for name in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            for extra in name.split(","):
                assert f"\n{extra} = [" in text, f"no extra {extra}"
