"""``fedhubert recipe``: several runs as one command that can be stopped and given again at any
point."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhubert.compose import compose
from fedhubert.compose.overrides import hydra_quoted
from fedhubert.compose.recipes import read_recipe
from fedhubert.config import PLACEHOLDER, Config, Recipe, Stage
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.federation.engine.run import last_checkpoint, train_here
from fedhubert.files import sha256_of
from fedhubert.formats import FORMATS, PROGRAMS
from fedhubert.formats.export import export
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.reporting.console import log_to_terminal
from fedhubert.runs.folder import RunFolder

log = logging.getLogger("fedhubert")

_OURS = ("out", "resume", "checkpoint_dir")


@dataclass(frozen=True)
class StagePlan:
    """A recipe with its command line: every training stage as a configuration, in order.

    Attributes:
        configs: Stage -> configuration.
        sources: Exporting stage -> the training stage that it exports.
    """

    recipe: Recipe
    out: Path
    configs: Mapping[str, Config]
    sources: Mapping[str, str]

    @classmethod
    def make(cls, name: str, arguments: Sequence[str]) -> "StagePlan":
        """Compose every stage before any runs, so that a wrong key in the last is found at once.

        Args:
            name: A recipe of ``conf/recipe``, or a YAML file.
            arguments: ``out=DIR``, overrides for every training stage (``KEY=VALUE``) and for one
                (``STAGE:KEY=VALUE``); they win over the recipe's.

        Raises:
            ConfigError: no such recipe or stage, or a stage that does not compose; by name.
        """
        recipe = read_recipe(name)
        common, own = _sorted_out(recipe, arguments)
        out = common.pop("out", f"out=outputs/recipe-{Path(name).stem}").partition("=")[2]
        configs: dict[str, Config] = {}
        sources: dict[str, str] = {}
        for stage in recipe.stages:
            before = list(configs)
            if stage.export:
                if stage.export not in FORMATS | PROGRAMS:
                    raise ConfigError(
                        f"stage {stage.name}: no format {stage.export!r}; there are "
                        f"{', '.join(FORMATS | PROGRAMS)}"
                    )
                sources[stage.name] = before[-1] if stage.of == "previous" else stage.of
                continue
            checkpoints = {other: str(last_checkpoint(configs[other])) for other in before}
            if before:
                checkpoints["previous"] = checkpoints[before[-1]]
            overrides = (
                {_key(text): _filled(text, checkpoints) for text in stage.overrides}
                | common
                | own.get(stage.name, {})
            )
            try:
                configs[stage.name] = compose(
                    [
                        *overrides.values(),
                        f"out={hydra_quoted(f'{out}/{stage.name}')}",
                        "resume=auto",
                    ]
                )
            except ConfigError as error:
                raise ConfigError(f"stage {stage.name}: {error}", setting=error.setting) from None
        folder = RunFolder.of(next(iter(configs.values()))).path.parent
        return cls(recipe, folder, configs, sources)


def run_recipe(name: str, arguments: Sequence[str]) -> None:
    """Run the stages of a recipe in order, each in a folder of its own below ``out``; what is
    finished is skipped, what was stopped goes on.

    With ``dry_run=true`` only the first training stage that is not finished is tried out.

    Raises:
        ConfigError: see :meth:`StagePlan.make`.
        RunInterrupted: asked to stop; the same command goes on from there.
        FedhubertError: with the reason; finished stages stay.
    """
    plan = StagePlan.make(name, arguments)
    log_to_terminal()
    stages = plan.recipe.stages
    for number, stage in enumerate(stages, start=1):
        # again: a run that stopped early has another last checkpoint than planned
        plan = StagePlan.make(name, arguments)
        log.info("stage %d/%d: %s", number, len(stages), stage.name)
        if stage.export:
            _export(plan, stage)
            continue
        config = plan.configs[stage.name]
        finished = last_checkpoint(config).is_file()
        if config.dry_run and finished:
            continue
        train_here(config)
        if config.dry_run:
            return


def _export(plan: StagePlan, stage: Stage) -> None:
    checkpoint = last_checkpoint(plan.configs[plan.sources[stage.name]])
    if not checkpoint.is_file():
        raise CheckpointError(f"stage {stage.name}: {checkpoint} is not there")
    folder, note = plan.out / stage.name, plan.out / f".{stage.name}.source"
    source = f"{stage.export} {sha256_of(checkpoint)}\n"
    if folder.is_dir() and note.is_file() and note.read_text() == source:
        log.info("%s is there", folder)
        return
    export(load_checkpoint(checkpoint), str(stage.export), folder, overwrite=True)
    note.write_text(source)
    log.info("%s: %s", stage.export, folder)


def _sorted_out(
    recipe: Recipe, arguments: Sequence[str]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the overrides for every training stage, by key, and those for one, by stage and
    key."""
    common: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {}
    trained = [stage.name for stage in recipe.stages if not stage.export]
    for argument in arguments:
        name, colon, override = argument.partition(":")
        prefixed = bool(colon) and "=" not in name
        if prefixed and name not in trained:
            raise ConfigError(
                f"{argument}: the recipe has no training stage {name!r}; it has "
                f"{', '.join(trained)}"
            )
        text = override if prefixed else argument
        if "=" not in text:
            raise ConfigError(f"{argument}: give KEY=VALUE, or STAGE:KEY=VALUE")
        if _key(text) in _OURS and (prefixed or _key(text) != "out"):
            raise ConfigError(
                f"{argument}: a recipe sets {', '.join(_OURS)} of its stages itself; out=DIR names "
                "the folder above them"
            )
        (own.setdefault(name, {}) if prefixed else common)[_key(text)] = text
    return common, own


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _filled(override: str, checkpoints: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: hydra_quoted(checkpoints[match.group(1)]), override)
