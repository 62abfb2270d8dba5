"""``fedhubert train``: one run in this process, from its configuration to a table, a plot and a
checkpoint."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flwr.serverapp import Grid
from rich.console import Console
from rich.table import Table

from fedhubert.clients.data import Site
from fedhubert.config import Config
from fedhubert.data.corpora import with_absolute_data
from fedhubert.federation.engine.early import check_machine
from fedhubert.federation.engine.simulation import federation_config, simulate
from fedhubert.federation.phases.teacher import with_teacher
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.federation.server.resume import check_same_run
from fedhubert.federation.server.session import Run, RunResult, open_run
from fedhubert.federation.server.space import check_site_space
from fedhubert.federation.wire.grid import StreamingGrid, messages_in_flight
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.reporting.console import RoundProgress, log_to_terminal
from fedhubert.reporting.summary import final_event, plot_curves, rounds_table
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.store import RoundStore


def train_here(config: Config) -> float:
    """Train on this host and return the final validation loss (for sweeps; ``dry_run``: NaN).

    Raises:
        FedhubertError: see :func:`check_machine`, :func:`open_run` and :meth:`Run.over`.
    """
    console = log_to_terminal()
    config = with_absolute_data(config)
    if config.dry_run:
        return _dry_run(config, console)
    if is_finished(config):
        config, _ = with_teacher(config)
        folder = RunFolder.of(config)
        final = final_event(folder.metrics_file)
        checkpoint = last_checkpoint(config)
        check_same_run(load_checkpoint(checkpoint)["config"], config, folder.path)
        console.print(
            f"all {final['round']} rounds are done in {folder.path}",
            highlight=False,
            soft_wrap=True,
        )
        return _summarise(RunResult(folder, checkpoint, final["validation"]))
    site = check_machine(config)
    results: list[RunResult] = []
    with (
        _stop_on_signals(console) as stop,
        RoundProgress(console) as progress,
        open_run(config) as run,
    ):
        _check_space(run, site)

        def serve(grid: Grid) -> None:
            window = messages_in_flight(config.simulation.num_workers)
            results.append(run.over(StreamingGrid(grid, window=window, stop=stop), progress))

        console.print(
            f"same federation with Flower's CLI: flwr run . --federation-config '{federation_config(config)}'",
            style="dim",
            highlight=False,
            soft_wrap=True,
        )
        simulate(config, serve, stop)
    return _summarise(results[0])


def check_here(config: Config) -> None:
    """Raise :class:`FedhubertError` for what can be known to be wrong with a run on this host before
    it begins; nothing where it is finished."""
    config = with_absolute_data(config)
    if not is_finished(config):
        check_machine(config)
        check_models(config)


def _dry_run(config: Config, console: Console) -> float:
    """Print what a run's preflight finds; there is no loss to return."""
    check_machine(config)
    checked = check_models(config)
    tables: list[Table] = []
    with _stop_on_signals(console) as stop:
        simulate(
            config,
            lambda grid: tables.append(describe_federation(grid, checked, stop=stop)),
            stop,
        )
    _print_table(tables[0])
    return float("nan")


def last_checkpoint(config: Config) -> Path:
    """Return where the last round's checkpoint of a run is, or will be (a round before that, if the
    run stops early)."""
    folder = RunFolder.of(config)
    final = final_event(folder.metrics_file)
    return RoundStore(folder.checkpoints).path(
        final["round"] if final else config.federated.num_rounds
    )


def is_finished(config: Config) -> bool:
    """Whether ``resume=auto`` finds nothing left to do: the last round is saved and its model
    scored."""
    if config.resume != "auto" or config.out is None:
        return False
    folder = RunFolder.of(config)
    final = final_event(folder.metrics_file)
    done = bool(final.get("validation")) and final.get("num_rounds") == config.federated.num_rounds
    return done and RoundStore(folder.checkpoints).latest().round == final["round"]


def _summarise(result: RunResult) -> float:
    """Draw the curves, print the table and where things are; return the final validation loss."""
    plot_curves(result.folder.metrics_file, result.folder.plot_file)
    output = _print_table(rounds_table(result.folder.metrics_file))
    for name, path in (
        ("curves", result.folder.plot_file),
        ("metrics", result.folder.metrics_file),
        ("last checkpoint", result.checkpoint),
    ):
        output.print(f"{name}: {path}", soft_wrap=True, highlight=False)
    loss = result.validation.get("loss")
    return loss if isinstance(loss, float) else math.inf


def _print_table(table: Table) -> Console:
    output = Console()
    if not output.is_terminal:
        output = Console(width=110)
    output.print(table)
    return output


def _check_space(run: Run, site: Site) -> None:
    """Raise :class:`ConfigError` where the state folder's disk is too small for all clients."""
    config, rate_hz = run.record.config, site.job.data.sample_rate_hz
    samples = site.manifest.lengths(rate_hz)
    parts = [site.partition(number) for number in range(config.federated.num_clients)]
    seconds = [
        (
            float(samples[part.train_rows].sum() / rate_hz),
            float(samples[part.validation_rows].sum() / rate_hz),
        )
        for part in parts
    ]
    check_site_space(
        config,
        site.settings.state_dir,
        run.state.layout,
        seconds,
        feature_width=run.feature_width,
        kept_bytes=run.kept_bytes,
    )


@contextmanager
def _stop_on_signals(console: Console) -> Iterator[threading.Event]:
    """Turn Ctrl-C, SIGTERM and a scheduler's warning (SIGUSR1) into an event; a second Ctrl-C
    interrupts at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        console.print(
            f"{signal.Signals(number).name}: stopping; the last finished round is kept",
            style="bold",
        )
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = (
        {number: signal.signal(number, ask) for number in signals}
        if threading.current_thread() is threading.main_thread()
        else {}
    )
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
