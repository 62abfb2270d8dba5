"""Several runs from overrides that name several values, by Hydra's multirun."""

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fedhubert.compose import compose, composition, config_folder, to_config
from fedhubert.compose.overrides import check_overrides
from fedhubert.config import Config


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


def multirun(
    overrides: Sequence[str], job: Callable[[str, list[str], Callable[[], Config]], object]
) -> None:
    """Run Hydra's multirun: ``job`` once per combination, each with a folder of its own below
    ``out``, or the sweep's folder.

    ``job`` is given the folder, the overrides and a function that returns the configuration, or
    raises :class:`ConfigError`.

    Raises:
        ConfigError: overrides that Hydra cannot read or does not know, or a search without its
            plugin.
    """
    composition(sweep_jobs(overrides)[0][0])

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
