"""The command ``fedhubert``. Verbs that train take Hydra overrides (``federated.num_rounds=20``),
verbs on files take ``--flags``.

Every failure exits non-zero and its last line says why: 1 for an error, 2 for a wrong call, 75 for
a run that was asked to stop and can be resumed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedhubert import __version__
from fedhubert.errors import FedhubertError

if TYPE_CHECKING:
    from fedhubert.config import Config

EXIT_ERROR, EXIT_USAGE, EXIT_RESUMABLE = 1, 2, 75

VERBS = {
    "prepare": "make a manifest: of any folder of audio, LibriSpeech, Kaldi, Common Voice, lhotse, HuggingFace, archives, or the sample speech",
    "train": "federated training, simulated on this host (takes Hydra overrides)",
    "central": "the same training without federation, in one model or one per client (takes Hydra overrides)",
    "compare": "federated, central, local-only and untrained models over several seeds (takes Hydra overrides)",
    "config": "explain a key of the configuration, list a group's keys, or all",
    "plan": "what a federation would take before it is run: steps, audio, bytes, hours, memory (takes Hydra overrides)",
    "recipe": "several trainings and exports as one command that can be resumed (takes Hydra overrides)",
    "fork": "a new run from a round of another one, under other settings",
    "evaluate": "masked prediction, linear probes and cluster purity of a checkpoint, with MFCC and an untrained model beside",
    "report": "runs side by side on one HTML page: curves, clients, failures, bytes, time, settings, probes",
    "export": "turn a round checkpoint into what HuggingFace, s3prl, torchaudio or fairseq load, or into a program for onnxruntime or torch",
    "bench-model": "what encoders take to run, beside each other: time, memory, size, products, in torch and onnxruntime, on one thread and all",
    "state": "what a site keeps between rounds and runs, and how to remove it",
    "site": "a site of a federation: takes the coordinator's messages and answers them with the installed code, until stopped",
    "doctor": "versions, cores, GPUs, room and extras of this installation; what would fail, and what to do",
    "certs": "make the TLS certificates and node keys of a federation on real sites",
}

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
"""

DEMO_ON_OWN_AUDIO = """\
fedhubert: no experiment=... was given, so the demo's settings hold: model {model}, a toy that learns something in minutes on two cores.
For audio of your own take experiment=speech_mini (tiny, by speaker), experiment=accelerator_small (hubert_small, one GPU) or
experiment=research_standard_pretraining (hubert_base)."""

RECIPE_HELP = """\
usage: fedhubert recipe NAME [out=DIR] [KEY=VALUE ...] [STAGE:KEY=VALUE ...]

Run the stages of a recipe in order, each in a folder of its own below DIR (default: outputs/recipe-NAME). KEY=VALUE are Hydra overrides for
every training stage, STAGE:KEY=VALUE for one. The same command goes on where it was stopped, and skips what is done.

  fedhubert recipe demo                                        both iterations on the sample speech
  fedhubert recipe full out=DIR data.manifest=PATH             MFCC clusters, iteration 1, layer clusters, iteration 2, export
  fedhubert recipe full out=DIR data.manifest=PATH iteration2:targets.source=layer:9
  fedhubert recipe my-recipe.yaml                              a list of stages of your own, as in conf/recipe/

recipes: {recipes}
"""

FORK_HELP = """\
Go on from a round of a run under other settings, in a folder of its own:

  fedhubert fork outputs/demo out=outputs/longer federated.num_rounds=20
  fedhubert fork outputs/demo --round 4 out=outputs/prox federated.strategy=FedProx

The new run's checkpoints say where it comes from and what was changed. After an interruption the same command goes on.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["train"]:
            return train(arguments[1:])
        if arguments[:1] in (["central"], ["compare"]):
            from fedhubert.commands import baselines as command

            return (command.central if arguments[0] == "central" else command.compare)(
                arguments[1:]
            )
        if arguments[:1] == ["plan"]:
            from fedhubert.commands.plan import plan

            return plan(arguments[1:])
        if arguments[:1] == ["recipe"]:
            return recipe(arguments[1:])
        parser = _parser()
        parsed = parser.parse_args(arguments)
        if not hasattr(parsed, "run"):
            parser.print_help()
            return EXIT_USAGE
        run: Callable[[argparse.Namespace], int] = parsed.run
        return run(parsed)
    except FedhubertError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("fedhubert: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # for example `fedhubert train --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def _fail(error: FedhubertError) -> int:
    print(f"fedhubert: {error}", file=sys.stderr)
    return EXIT_RESUMABLE if error.code == "interrupted" else EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    from fedhubert.commands import (
        bench_model,
        certs,
        config,
        doctor,
        evaluate,
        export,
        prepare,
        report,
        site,
        state,
    )

    parser = argparse.ArgumentParser(
        prog="fedhubert",
        description="Federated HuBERT pretraining: speech encoders trained where the audio is.",
    )
    parser.add_argument("--version", action="version", version=f"fedhubert {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    files = (
        ("prepare", prepare),
        ("export", export),
        ("evaluate", evaluate),
        ("bench-model", bench_model),
        ("report", report),
        ("state", state),
        ("config", config),
        ("doctor", doctor),
        ("site", site),
        ("certs", certs),
    )
    for name, module in files:
        verb = verbs.add_parser(
            name, help=VERBS[name], description=f"{VERBS[name][0].upper()}{VERBS[name][1:]}."
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    for name in ("train", "recipe", "central", "compare", "plan"):
        verbs.add_parser(name, help=VERBS[name], add_help=False)
    forked = verbs.add_parser(
        "fork",
        help=VERBS["fork"],
        description=FORK_HELP,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    forked.add_argument("source", metavar="RUN", help="folder of the run to start from")
    forked.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="+",
        help="settings that differ; out=... is one of them",
    )
    forked.add_argument("--round", type=int, help="the round to start from (default: the newest)")
    forked.set_defaults(run=_fork)
    return parser


def _fork(parsed: argparse.Namespace) -> int:
    from pathlib import Path

    from fedhubert.federation.engine.run import train_here
    from fedhubert.federation.server.fork import fork

    train_here(fork(Path(parsed.source), parsed.overrides, parsed.round))
    return 0


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
        print(
            f"fedhubert: unknown option {unknown[0]}; `fedhubert train` takes KEY=VALUE overrides, see --help",
            file=sys.stderr,
        )
        return EXIT_USAGE
    if {"-h", "--help"} & set(flags):
        from fedhubert.compose import group_choices

        choices = "".join(
            f"  {group + '=':13s}{', '.join(names)}\n" for group, names in group_choices().items()
        )
        print(TRAIN_HELP.format(choices=choices))
        return 0
    from fedhubert.compose import compose
    from fedhubert.compose.recipes import recipe_names
    from fedhubert.compose.sweeps import describe_sweep

    if {"-m", "--multirun"} & set(flags):
        if {"--cfg", "--cfg=job"} & set(flags):
            print(describe_sweep(overrides, lambda config: _shown(config, flags)), end="")
            return 0
        return _multirun(overrides)

    for name in recipe_names():
        if f"experiment={name}_recipe" in overrides and not flags:
            return recipe(
                [name, *(text for text in overrides if text != f"experiment={name}_recipe")]
            )
    config = compose(overrides)
    if flags:
        print(_shown(config, flags), end="")
        return 0
    from fedhubert.federation.engine.run import train_here

    chosen = any(text.startswith("experiment=") for text in overrides)
    if config.data.manifest != "sample" and not chosen:
        print(DEMO_ON_OWN_AUDIO.format(model=config.model.name), file=sys.stderr)
    train_here(config)
    return 0


def _shown(config: "Config", flags: Sequence[str]) -> str:
    """What ``--cfg job`` prints of a configuration, commented under ``--explain``."""
    from fedhubert.compose import to_yaml
    from fedhubert.config.explain import with_comments

    return with_comments(to_yaml(config)) if "--explain" in flags else to_yaml(config)


def recipe(arguments: Sequence[str]) -> int:
    """``fedhubert recipe``: see :data:`RECIPE_HELP`."""
    if {"-h", "--help"} & set(arguments):
        from fedhubert.compose.recipes import recipe_names

        print(RECIPE_HELP.format(recipes=", ".join(recipe_names())))
        return 0
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print(
            "fedhubert: name a recipe, then overrides: fedhubert recipe demo out=DIR; see --help",
            file=sys.stderr,
        )
        return EXIT_USAGE
    from fedhubert.federation.engine.recipe import run_recipe

    run_recipe(arguments[0], arguments[1:])
    return 0


def _multirun(overrides: Sequence[str]) -> int:
    """Run a sweep; a job that fails is reported and does not stop the others."""
    from fedhubert.compose.sweeps import multirun

    failures: list[str] = []

    def job(out: str, configuration: Callable[[], "Config"]) -> float:
        from fedhubert.federation.engine.run import train_here

        try:
            return train_here(configuration())
        except FedhubertError as error:
            if error.code == "interrupted":
                raise
            failures.append(f"{out}: {error}")
            return float("inf")  # worse than any loss; Optuna ends a search at a NaN

    multirun(overrides, job)
    if failures:
        raise FedhubertError(f"{len(failures)} jobs of the sweep failed; {'; '.join(failures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
