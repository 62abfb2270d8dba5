"""The command ``fedhubert``. Verbs that train take Hydra overrides (``federated.num_rounds=20``),
verbs on files take ``--flags``.

Every failure exits non-zero and its last line says why: 1 for an error, 2 for a wrong call, 75 for
a run that was asked to stop and can be resumed.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fedhubert import __version__, live
from fedhubert.commands.again import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_RESUMABLE,
    EXIT_USAGE,
    same_command,
    with_command,
)
from fedhubert.errors import FedhubertError
from fedhubert.runs import starts

_SHOWN = ("prepare", "train", "central", "compare", "plan", "recipe", "fork", "evaluate", "export")
"""Verbs that take their time and say on the terminal what they do,"""
_PRINTS = {"-h", "--help", "--cfg", "--cfg=job"}
"""but for those that only print."""
_REPORTS = ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")
"""By which Flower and Ray would tell their makers of a run, and wait for them at its end."""

VERBS = {
    "prepare": (
        "make a manifest: of any folder of audio, LibriSpeech, Kaldi, Common Voice, lhotse, "
        "HuggingFace, archives, or the sample speech"
    ),
    "train": "federated training, simulated on this host (takes Hydra overrides)",
    "central": (
        "the same training without federation, in one model or one per client (takes Hydra "
        "overrides)"
    ),
    "compare": (
        "federated, central, local-only and untrained models over several seeds (takes Hydra "
        "overrides)"
    ),
    "config": "explain a key of the configuration, list a group's keys, or all",
    "plan": (
        "what a federation would take before it is run: steps, audio, bytes, hours, memory (takes "
        "Hydra overrides)"
    ),
    "recipe": (
        "several trainings and exports as one command that can be resumed (takes Hydra overrides)"
    ),
    "fork": "a new run from a round of another one, under other settings",
    "evaluate": (
        "masked prediction, linear probes and cluster purity of a checkpoint, with MFCC and an "
        "untrained model beside"
    ),
    "report": (
        "runs side by side on one HTML page: curves, clients, failures, bytes, time, settings, "
        "probes"
    ),
    "export": (
        "turn a round checkpoint into what HuggingFace, s3prl, torchaudio or fairseq load, or into "
        "a program for onnxruntime or torch"
    ),
    "bench-model": (
        "what encoders take to run, beside each other: time, memory, size, products, in torch and "
        "onnxruntime, on one thread and all"
    ),
    "state": "what a site keeps between rounds and runs, and how to remove it",
    "site": (
        "a site of a federation: takes the coordinator's messages and answers them with the "
        "installed code, until stopped"
    ),
    "superlink": (
        "flower-superlink with its flags, for large models: arrays in transit lie in files beside "
        "its database, not in it"
    ),
    "doctor": (
        "versions, cores, GPUs, room and extras of this installation; what would fail, and what to "
        "do"
    ),
    "certs": "make the TLS certificates and node keys of a federation on real sites",
    "completion": (
        "print the script by which bash completes verbs, flags, keys and experiments: "
        ". <(fedhubert completion bash)"
    ),
}

RECIPE_HELP = """\
usage: fedhubert recipe NAME [out=DIR] [KEY=VALUE ...] [STAGE:KEY=VALUE ...]

Run the stages of a recipe in order, each in a folder of its own below DIR (default: outputs/recipe-NAME). KEY=VALUE are Hydra overrides for
every training stage, STAGE:KEY=VALUE for one. The same command goes on where it was stopped, and skips what is done.

  fedhubert recipe demo                                        both iterations on the sample speech
  fedhubert recipe full out=DIR data.manifest=PATH             MFCC clusters, iteration 1, layer clusters, iteration 2, export
  fedhubert recipe full out=DIR data.manifest=PATH iteration2:targets.source=layer:9
  fedhubert recipe my-recipe.yaml                              a list of stages of your own, as in conf/recipe/

recipes: {recipes}
"""  # noqa: E501

FORK_HELP = """\
Go on from a round of a run under other settings, in a folder of its own:

  fedhubert fork outputs/demo out=outputs/longer federated.num_rounds=400
  fedhubert fork outputs/demo --round 200 out=outputs/slower federated.eta=2e-3

The new run's checkpoints say where it comes from and what was changed. After an interruption the same command goes on.
"""  # noqa: E501


def command() -> NoReturn:
    """The process ``fedhubert``. One that was interrupted has said all and is gone: taking torch
    and Ray down in order, and threads that nobody asks any more, may last longer than a person
    waits."""
    code = main()
    if code in (EXIT_RESUMABLE, EXIT_INTERRUPTED) and set(sys.argv[1:2]) & set(_SHOWN):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    starts.typed(arguments)
    for name in _REPORTS:
        os.environ.setdefault(name, "0")
    try:
        if arguments[:1] and arguments[0] in _SHOWN and not _PRINTS & set(arguments):
            with live.shown(f"fedhubert {arguments[0]}: loading"), with_command(arguments):
                return _run(arguments)
        return _run(arguments)
    except FedhubertError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print(f"fedhubert: interrupted; go on with: {same_command(arguments)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # for example `fedhubert train --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["train"]:
        from fedhubert.commands.train import train

        return train(arguments[1:])
    if arguments[:1] in (["central"], ["compare"]):
        from fedhubert.commands import baselines as command

        return (command.central if arguments[0] == "central" else command.compare)(arguments[1:])
    if arguments[:1] == ["plan"]:
        from fedhubert.commands.plan import plan

        return plan(arguments[1:])
    if arguments[:1] == ["recipe"]:
        return recipe(arguments[1:])
    if arguments[:1] == ["superlink"]:
        from fedhubert.federation.wire.flower.superlink import main as superlink

        superlink(arguments[1:])
        return 0
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if not hasattr(parsed, "run"):
        parser.print_help()
        return EXIT_USAGE
    run: Callable[[argparse.Namespace], int] = parsed.run
    return run(parsed)


def _fail(error: FedhubertError) -> int:
    print(f"fedhubert: {error}", file=sys.stderr)
    return EXIT_RESUMABLE if error.code == "interrupted" else EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    from fedhubert.commands import (
        bench_model,
        certs,
        completion,
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
        ("completion", completion),
    )
    for name, module in files:
        verb = verbs.add_parser(
            name, help=VERBS[name], description=f"{VERBS[name][0].upper()}{VERBS[name][1:]}."
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    for name in ("train", "recipe", "central", "compare", "plan", "superlink"):
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
    verbs.choices["completion"].set_defaults(verbs=verbs.choices)
    return parser


def _fork(parsed: argparse.Namespace) -> int:
    from pathlib import Path

    from fedhubert.federation.engine.run import train_here
    from fedhubert.federation.server.fork import fork

    train_here(fork(Path(parsed.source), parsed.overrides, parsed.round))
    return 0


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


if __name__ == "__main__":
    command()
