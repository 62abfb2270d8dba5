"""``dry_run=true``: connect to the sites, check them, say what each client would bring, and train
nothing."""

import threading
from collections.abc import Mapping

from rich.table import Table

from fedhubert.clients import Metrics
from fedhubert.config import Config
from fedhubert.federation.phases.secure_run import close_run, say_how_secure
from fedhubert.federation.phases.teacher import with_teacher
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire.flower import Grid
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.objectives.spec import build_model
from fedhubert.targets.extractor import Extractor
from fedhubert.training.parameters import ParameterLayout


def describe_federation(
    grid: Grid, config: Config, *, stop: threading.Event | None = None
) -> Table:
    """Connect to all sites and check them as a run would; return a table of what each client would
    bring. Writes and trains nothing.

    Raises:
        FedhubertError: what would stop the run before its first round, by name.
    """
    config, _ = with_teacher(config)
    layout = ParameterLayout.of(build_model(config.model, config.task, config.seed))
    federation = Federation(StreamingGrid(grid, stop=stop), config, "dry-run", layout)
    Extractor.of(config.targets)
    connect(federation)
    say_how_secure(federation)
    close_run(federation)
    numbers = {
        partitions[0]: number
        for number, partitions in enumerate(federation.hosts.values())
        if len(partitions) == 1
    }
    return partitions_table(federation.partitions, numbers)


def partitions_table(partitions: Mapping[int, Metrics], nodes: Mapping[int, int]) -> Table:
    """Return one row per client: which node would train it, utterances, hours, batches per epoch;
    and their totals."""
    table = Table(title="Dry run: what each client would bring; nothing was trained")
    for name in (
        "client",
        "node",
        "train utterances",
        "valid. utterances",
        "train h",
        "valid. h",
        "batches per epoch",
    ):
        table.add_column(name, justify="right")
    rows = [
        (partition, nodes.get(partition, -1), partitions[partition])
        for partition in sorted(partitions)
    ]
    for partition, node, numbers in rows:
        table.add_row(str(partition), "any" if node < 0 else str(node), *_figures([numbers]))
    table.add_section()
    table.add_row("all", "", *_figures([numbers for _, _, numbers in rows]))
    return table


def _figures(clients: list[Metrics]) -> list[str]:
    def total(name: str) -> float:
        return sum(float(numbers[name]) for numbers in clients)

    return [
        f"{total('train_utterances'):.0f}",
        f"{total('validation_utterances'):.0f}",
        f"{total('train_audio_s') / 3600:.3f}",
        f"{total('validation_audio_s') / 3600:.3f}",
        f"{total('batches_per_epoch'):.0f}",
    ]
