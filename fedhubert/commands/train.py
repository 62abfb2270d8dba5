"""The verb ``train``: Hydra overrides, and a word on the model where the default is a toy."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedhubert.commands.again import unknown_option, with_command

if TYPE_CHECKING:
    from fedhubert.config import Config

TRAIN_HELP = """\
usage: fedhubert train [KEY=VALUE ...] [--cfg job [--explain]] [-m]

Train federated on this host: Flower's simulation engine plays every client. KEY=VALUE are Hydra overrides.

  fedhubert train                                            the demo: five languages, five clients
  fedhubert train experiment=E out=DIR resume=auto           go on where DIR was left
  fedhubert train experiment=speech_mini data.manifest=PATH  your own audio (see `fedhubert prepare folder`), tiny model, by speaker
  fedhubert train experiment=accelerator_small data.manifest=PATH           the same with model=hubert_small, for one GPU
  fedhubert train experiment=research_standard_pretraining data.manifest=PATH   HuBERT base
  fedhubert train -m seed=1,2,3                              a sweep: one folder per job
  fedhubert train experiment=full_recipe ...                 the same as `fedhubert recipe full ...`

options:
  --cfg job          print the resolved configuration (with -m: of every job) and exit
  --explain          with --cfg job: each key's description, type, unit, default and what resuming asks of it as a comment
  -m, --multirun     run every combination of comma-separated values
  -h, --help         this text

stopping: Ctrl-C (or SIGTERM, or SIGUSR1) ends the run after the round in flight is dropped, with its last finished round
saved, and exit code 75; the same command with resume=auto goes on.

choices:
{choices}
All keys with their values: fedhubert train --cfg job; what a key means: fedhubert config KEY
"""  # noqa: E501

DEMO_ON_OWN_AUDIO = """\
fedhubert: no experiment=... was given, so the demo's settings hold:
model={model}, a toy that learns something in minutes on two cores.
For audio of your own take
  experiment=speech_mini                    tiny, by speaker, for two cores
  experiment=accelerator_small              model=hubert_small, for one GPU
  experiment=research_standard_pretraining  model=hubert_base, for several"""

TASK_ON_OWN_AUDIO = """\
fedhubert: no experiment=... was given, so the settings of experiment={experiment} hold:
model={model}, a toy; take the model=... that init_from or the teacher has.
`fedhubert train experiment={experiment} --cfg job --explain` lists them all."""


def train(arguments: Sequence[str]) -> int:
    """``fedhubert train``: see :data:`TRAIN_HELP`."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if "--cfg" in flags:
        overrides = [argument for argument in overrides if argument != "job"]
    unknown = [
        flag
        for flag in flags
        if flag not in ("-h", "--help", "--cfg", "-m", "--multirun", "--cfg=job", "--explain")
    ]
    if unknown:
        return unknown_option("train", unknown[0])
    if {"-h", "--help"} & set(flags):
        from fedhubert.compose import group_choices

        choices = "".join(
            f"  {group + '=':13s}{', '.join(names)}\n" for group, names in group_choices().items()
        )
        print(TRAIN_HELP.format(choices=choices))
        return 0
    from fedhubert.compose import compose, names_experiment
    from fedhubert.compose.recipes import recipe_names
    from fedhubert.compose.sweeps import describe_sweep

    if {"-m", "--multirun"} & set(flags):
        if {"--cfg", "--cfg=job"} & set(flags):
            print(describe_sweep(overrides, lambda config: _shown(config, flags)), end="")
            return 0
        from fedhubert.commands.sweep import run_sweep

        return run_sweep(overrides)

    for name in recipe_names():
        if f"experiment={name}_recipe" in overrides and not flags:
            from fedhubert.federation.engine.recipe import run_recipe

            run_recipe(name, [text for text in overrides if text != f"experiment={name}_recipe"])
            return 0
    config = compose(overrides)
    if flags:
        print(_shown(config, flags), end="")
        return 0
    from fedhubert.federation.engine.run import train_here
    from fedhubert.runs.folder import resolve_out

    if config.data.manifest != "sample" and not names_experiment(overrides):
        words = DEMO_ON_OWN_AUDIO if config.experiment == "demo" else TASK_ON_OWN_AUDIO
        said = words.format(model=config.model.name, experiment=config.experiment)
        print(said, file=sys.stderr)
    config = config.model_copy(update={"out": str(resolve_out(config))})  # named if it is stopped
    with with_command(["train", *arguments], config.out):
        train_here(config)
    return 0


def _shown(config: "Config", flags: Sequence[str]) -> str:
    """What ``--cfg job`` prints of a configuration, commented under ``--explain``."""
    from fedhubert.compose import to_yaml
    from fedhubert.config.explain import with_comments

    return with_comments(to_yaml(config)) if "--explain" in flags else to_yaml(config)
