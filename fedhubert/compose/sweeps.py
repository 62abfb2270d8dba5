"""Several runs from overrides that name several values, by Hydra's multirun."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fedhubert.compose import compose, config_folder, to_config
from fedhubert.compose.overrides import check_overrides
from fedhubert.config import Config
from fedhubert.errors import FedhubertError


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


def differing(jobs: Sequence[tuple[list[str], list[str]]]) -> set[str]:
    """Return the overrides that some of the ``jobs`` (:func:`sweep_jobs`) have and others lack."""
    return {text for job, _ in jobs for text in job if any(text not in other for other, _ in jobs)}


def jobs_of(overrides: Sequence[str]) -> list[tuple[str, Config]]:
    """Return name and configuration of every job of a sweep. Its name is its number, and the
    overrides in which it differs from others. What a search chooses has its default.

    Raises:
        ConfigError: what is wrong with one, by its name.
    """
    jobs, found = sweep_jobs(overrides), []
    different = differing(jobs)
    for number, (job, searched) in enumerate(jobs):
        differs = [text for text in job if text in different]
        chosen = [f"{text} (searched)" for text in searched]
        name = " ".join([f"job {number}:", *differs, *chosen]).removesuffix(":")
        with _named(name):
            config = compose(job)
        if config.out:
            config = config.model_copy(update={"out": str(Path(config.out, str(number)))})
        found.append((name, config))
    return found


@contextmanager
def _named(job: str) -> Iterator[None]:
    """Put the name of a job before what errors of the block say."""
    try:
        yield
    except FedhubertError as error:
        error.args = (f"{job}: {error}",)
        raise


def describe_sweep(overrides: Sequence[str], show: Callable[[Config], str]) -> str:
    """Return what ``show`` makes of the configuration of every job of a sweep, as YAML documents
    under their names; raises :class:`ConfigError`."""
    return "---\n".join(f"# {name}\n{show(config)}" for name, config in jobs_of(overrides))


def multirun(
    overrides: Sequence[str],
    job: Callable[[str, list[str], Callable[[], Config]], object],
    check: Callable[[Config], object] = lambda config: None,
) -> None:
    """Run Hydra's multirun: ``job`` once per combination, each with a folder of its own below
    ``out``, or the sweep's folder; before the first of them, ``check`` all configurations.

    ``job`` is given the folder, the overrides and a function that returns the configuration, or
    raises :class:`ConfigError`.

    Raises:
        ConfigError: overrides that Hydra cannot read or does not know, or a search without its
            plugin.
        FedhubertError: what is wrong with a job, by its name; none has begun then.
    """
    for name, config in jobs_of(overrides):
        with _named(name):
            check(config)

    def one(composed: DictConfig) -> object:
        sweep, given = HydraConfig.get().sweep, OmegaConf.select(composed, "out")
        out = str(Path(given, sweep.subdir) if given else Path(sweep.dir, sweep.subdir).absolute())
        task = list(HydraConfig.get().overrides.task)
        return job(out, task, lambda: to_config(composed).model_copy(update={"out": out}))

    program, arguments = sys.argv[0], sys.argv
    sys.argv = [program, "--multirun", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(
            one
        )()
    finally:
        sys.argv = arguments
