"""``dry_run=true``: connect to the sites, check them, say what each client would bring, and train
nothing."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from fedhubert.clients import Metrics
from fedhubert.compose.overrides import shell_override
from fedhubert.config import Config
from fedhubert.data.batching import ENOUGH_HEARD
from fedhubert.federation.phases.characters import agreed_characters
from fedhubert.federation.phases.layer_choice import with_layer
from fedhubert.federation.phases.secure_run import close_run, say_how_secure
from fedhubert.federation.phases.teacher import with_teacher
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire.flower import Grid
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.formats.starting import start_from
from fedhubert.targets.extractor import Extractor
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.travelling import travelling_model

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class CheckedModels:
    """A configuration whose models were read: its teacher filled in, and what travels."""

    config: Config
    layout: ParameterLayout


def check_models(config: Config) -> CheckedModels:
    """Read every model that a run would start from: ``task.teacher``, ``init_from``,
    ``targets.checkpoint``.

    Raises:
        FedhubertError: one that cannot be used.
    """
    config, _ = with_teacher(with_layer(config))
    model, layout = travelling_model(config.model, config.task, config.client, config.seed)
    if config.init_from is not None:
        start_from(model, config.init_from)
    if config.task.needs_labels:
        Extractor.of(config.targets)
    return CheckedModels(config, layout)


def describe_federation(
    grid: Grid, models: CheckedModels, *, stop: threading.Event | None = None
) -> Table:
    """Connect to all sites and check them as a run would; return a table of what each client would
    bring. Writes and trains nothing.

    Raises:
        FedhubertError: what would stop the run before its first round, by name.
    """
    streaming = StreamingGrid(grid, stop=stop)
    federation = Federation(streaming, models.config, "dry-run", models.layout)
    connect(federation)
    say_how_secure(federation)
    if models.config.task.outputs == ("vocabulary", 0):
        found = agreed_characters(federation)
        log.info("the sites' transcripts are written in %d characters: give", len(found))
        log.info("%s", shell_override("task.vocabulary", found))
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
        "an epoch hears",
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
    share = _heard([numbers for _, _, numbers in rows])
    if share is not None and share < ENOUGH_HEARD:
        table.caption = (
            f"warning: an epoch hears {100 * share:.0f} % of the audio: utterances longer than "
            "data.max_seconds are cropped; `fedhubert prepare --cut 15` cuts recordings at pauses"
        )
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
        "" if (share := _heard(clients)) is None else f"{100 * share:.0f} %",
    ]


def _heard(clients: list[Metrics]) -> float | None:
    """Return how much of their training audio an epoch hears, from 0 to 1; None where a site does
    not say."""
    if not clients or not all("epoch_audio_s" in numbers for numbers in clients):
        return None
    heard = sum(float(numbers["epoch_audio_s"]) for numbers in clients)
    return min(1.0, heard / max(1e-9, sum(float(each["train_audio_s"]) for each in clients)))
