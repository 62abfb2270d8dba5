"""The verbs ``central`` and ``compare``: Hydra overrides, and a few words of their own."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedhubert.errors import ConfigError

if TYPE_CHECKING:
    from fedhubert.baselines.central import BaselineOptions

CENTRAL_HELP = """\
usage: fedhubert central [KEY=VALUE ...] [local_only=true] [reset_each_round=true]

Train without federation on the union of the clients' training splits: as many steps in a row as the federated run of the
same settings, on exactly its audio, with its schedule, seed and clusters, and scored as it is. KEY=VALUE are the Hydra
overrides of `fedhubert train`. Runs in one process; Ctrl-C keeps the last finished round.

  fedhubert central experiment=demo out=outputs/demo-central
  fedhubert central experiment=demo out=outputs/demo-alone local_only=true

words of its own:
  local_only=true         each client alone, for the steps that it would take: a folder per client below `out`
  reset_each_round=true   start the optimiser afresh at each round's boundary, as clients do (default: it is kept)
"""


def central(arguments: Sequence[str]) -> int:
    """``fedhubert central``: see :data:`CENTRAL_HELP`."""
    if {"-h", "--help"} & set(arguments):
        print(CENTRAL_HELP, end="")
        return 0
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags:
        print(f"fedhubert: unknown option {flags[0]}; `fedhubert central` takes KEY=VALUE overrides, see --help", file=sys.stderr)
        return 2
    from rich.console import Console

    from fedhubert.baselines.central import train_baseline
    from fedhubert.compose import compose
    from fedhubert.reporting.console import log_to_terminal
    from fedhubert.reporting.summary import plot_curves, rounds_table

    overrides, options = take_options(arguments)
    log_to_terminal()
    folder = train_baseline(compose(overrides), options)
    output = Console()
    output = output if output.is_terminal else Console(width=110)
    if not options.local_only:
        output.print(rounds_table(folder.metrics_file))
        plot_curves(folder.metrics_file, folder.plot_file)
        output.print(f"curves: {folder.plot_file}", soft_wrap=True, highlight=False)
    output.print(f"metrics: {folder.metrics_file}", soft_wrap=True, highlight=False)
    return 0


def take_options(arguments: Sequence[str]) -> "tuple[list[str], BaselineOptions]":
    """Split the verb's own words from Hydra's overrides; raises :class:`ConfigError` for one that is neither true nor false."""
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
