"""The verbs ``central`` and ``compare``: Hydra overrides, and a few words of their own."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedhubert.commands.again import unknown_option
from fedhubert.errors import ConfigError

if TYPE_CHECKING:
    from fedhubert.baselines.central import BaselineOptions

CENTRAL_HELP = """\
usage: fedhubert central [KEY=VALUE ...] [local_only=true] [reset_each_round=true]

Train without federation on the union of the clients' training splits: as many steps in a row as the federated run of the
same settings, on exactly its audio, with its schedule, seed and clusters, and scored as it is. KEY=VALUE are the Hydra
overrides of `fedhubert train`. Runs in one process; Ctrl-C and SIGTERM keep the last finished round.

  fedhubert central experiment=demo out=outputs/demo-central
  fedhubert central experiment=demo out=outputs/demo-alone local_only=true

words of its own:
  local_only=true         each client alone, for the steps that it would take: a folder per client below `out`
  reset_each_round=true   start the optimiser afresh at each round's boundary, as clients do (default: it is kept)
"""  # noqa: E501

COMPARE_USAGE = """\
fedhubert compare [KEY=VALUE ...] [seeds=N] [--eval-manifest M --phones FILE --labels FILE ...]

Train the federated run, the central one, each client alone, with seeds 0 to N - 1 (3 by default), and compare them with an
untrained model on held-out masked prediction, and on probes where --eval-manifest is given. What is finished is skipped.

  fedhubert compare experiment=demo seeds=3 out=outputs/demo-compare
"""  # noqa: E501


def central(arguments: Sequence[str]) -> int:
    """``fedhubert central``: see :data:`CENTRAL_HELP`."""
    if {"-h", "--help"} & set(arguments):
        print(CENTRAL_HELP, end="")
        return 0
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags:
        return unknown_option("central", flags[0])
    from fedhubert.baselines.central import train_baseline
    from fedhubert.compose import compose
    from fedhubert.reporting.console import log_to_terminal, output_console
    from fedhubert.reporting.curves import plot_curves
    from fedhubert.reporting.summary import rounds_table

    overrides, options = take_options(arguments)
    log_to_terminal()
    folder = train_baseline(compose(overrides), options)
    output = output_console(110)
    if not options.local_only:
        output.print(rounds_table(folder.metrics_file))
        plot_curves(folder.metrics_file, folder.plot_file)
        output.print(f"curves: {folder.plot_file}", soft_wrap=True, highlight=False)
    output.print(f"metrics: {folder.metrics_file}", soft_wrap=True, highlight=False)
    return 0


def take_options(arguments: Sequence[str]) -> "tuple[list[str], BaselineOptions]":
    """Split the verb's own words from Hydra's overrides; raises :class:`ConfigError` for one that
    is neither true nor false."""
    from fedhubert.baselines.central import BaselineOptions

    names = ("local_only", "reset_each_round")
    own: dict[str, bool] = {}
    overrides = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in names:
            overrides.append(argument)
        elif value.lower() not in ("true", "false"):
            raise ConfigError(f"{name}={value}: true or false", setting=name)
        else:
            own[name] = value.lower() == "true"
    return overrides, BaselineOptions(**own)


def compare(arguments: Sequence[str]) -> int:
    """``fedhubert compare``: see :data:`COMPARE_USAGE`."""
    flags = _compare_parser().parse_args(_split(arguments)[1])
    from pathlib import Path

    from fedhubert.baselines.compare import Comparison, comparison_table
    from fedhubert.baselines.compare import compare as compare_systems
    from fedhubert.commands.evaluate import probing_of
    from fedhubert.compose import compose
    from fedhubert.federation.engine.run import train_here
    from fedhubert.reporting.console import log_to_terminal, output_console
    from fedhubert.runs.folder import resolve_out

    overrides, seeds = _take_seeds(_split(arguments)[0])
    first = compose(overrides)
    out = (
        resolve_out(first)
        if first.out
        else resolve_out(
            first.model_copy(update={"out": str(Path("outputs", "compare", first.experiment))})
        )
    )
    configs = {seed: compose([*overrides, f"seed={seed}"]) for seed in range(seeds)}
    probing = None if flags.manifest is None else probing_of(flags)
    log_to_terminal()
    results = compare_systems(Comparison(configs, out, probing, flags.local_clients), train_here)
    output = output_console(140)
    output.print(comparison_table(results["summary"]))
    output.print(f"results: {out / 'compare.json'}", soft_wrap=True, highlight=False)
    return 0


def _compare_parser() -> argparse.ArgumentParser:
    from pathlib import Path

    from fedhubert.commands.evaluate import add_annotation_arguments

    parser = argparse.ArgumentParser(prog="fedhubert compare", usage=COMPARE_USAGE)
    parser.add_argument(
        "--eval-manifest", dest="manifest", type=Path, metavar="M", help="audio to probe on"
    )
    parser.add_argument(
        "--eval-root", dest="root", type=Path, metavar="DIR", help="where its paths start"
    )
    parser.add_argument(
        "--local-clients",
        type=int,
        default=1,
        metavar="N",
        help="clients whose own model is probed (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="cpu", help="where features are computed (default: %(default)s)"
    )
    add_annotation_arguments(parser)
    parser.set_defaults(seed=0, clusters=0)  # of which the table has no column
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return overrides and flags; every flag but --help takes a value."""
    overrides: list[str] = []
    flags: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("--") and "=" not in before and before != "--help"
        (flags if argument.startswith("-") or is_value else overrides).append(argument)
    return overrides, flags


def _take_seeds(arguments: Sequence[str]) -> tuple[list[str], int]:
    seeds, overrides = 3, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "seed":
            raise ConfigError(
                "compare sets the seed itself: give seeds=N for the seeds 0 to N - 1",
                setting="seeds",
            )
        if name != "seeds":
            overrides.append(argument)
        elif not value.isdigit() or not int(value):
            raise ConfigError(f"seeds={value}: a number from 1 on", setting="seeds")
        else:
            seeds = int(value)
    return overrides, seeds
