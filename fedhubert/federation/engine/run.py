"""``fedhubert train``: one run in this process, from its configuration to a table, a plot and a
checkpoint."""

import logging
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

from fedhubert import live
from fedhubert.clients.data import Site
from fedhubert.config import Config
from fedhubert.data.corpora import cache_folder, with_absolute_data
from fedhubert.federation.engine.early import check_machine, with_devices
from fedhubert.federation.engine.simulation import federation_config, simulate
from fedhubert.federation.phases.layer_choice import with_layer
from fedhubert.federation.phases.teacher import with_teacher
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.federation.server.resume import check_same_run
from fedhubert.federation.server.session import Run, RunResult, open_run
from fedhubert.federation.server.space import check_site_space
from fedhubert.federation.wire.grid import RunInterrupted, StreamingGrid, messages_in_flight
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.reporting.console import FILE_ONLY, log_to_terminal, near, output_console
from fedhubert.reporting.curves import plot_curves
from fedhubert.reporting.summary import final_event, rounds_table
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.store import RoundStore

log = logging.getLogger("fedhubert")


def train_here(config: Config) -> float:
    """Train on this host and return the final validation loss (for sweeps; ``dry_run``: NaN).

    Raises:
        FedhubertError: see :func:`check_machine`, :func:`open_run` and :meth:`Run.over`.
    """
    console = log_to_terminal()
    live.doing("reading the configuration and the manifest")
    config = with_devices(with_layer(with_absolute_data(config)))
    if config.dry_run:
        return _dry_run(config, console)
    if is_finished(config):
        config, _ = with_teacher(config)
        folder = RunFolder.of(config)
        final = final_event(folder.metrics_file)
        checkpoint = last_checkpoint(config)
        check_same_run(load_checkpoint(checkpoint)["config"], config, folder.path)
        log.info("all %d rounds are done in %s", final["round"], near(folder.path))
        return _summarise(RunResult(folder, checkpoint, final["validation"]))
    results: list[RunResult] = []
    with _stop_on_signals(console) as stop:
        live.doing("looking at every client's audio")
        site = check_machine(config)
        live.doing("opening the run's folder")
        with open_run(config) as run, live.libraries_write_to(run.record.folder.log_file):
            _check_space(run, site)
            logging.getLogger(FILE_ONLY).info(
                "same federation with Flower's CLI: flwr run . --federation-config '%s'",
                federation_config(config),
            )

            def serve(grid: Grid) -> None:
                stop.gently = True
                window = messages_in_flight(config.simulation.num_workers)
                results.append(run.over(StreamingGrid(grid, window=window, stop=stop)))

            live.doing(f"starting {config.simulation.num_workers} workers")
            simulate(config, serve, stop)
    return _summarise(results[0])


def check_here(config: Config) -> None:
    """Raise :class:`FedhubertError` for what can be known to be wrong with a run on this host
    before it begins; nothing where it is finished."""
    config = with_devices(with_absolute_data(config))
    if not is_finished(config):
        check_machine(config)
        check_models(config)


def _dry_run(config: Config, console: Console) -> float:
    """Print what a run's preflight finds; there is no loss to return."""
    tables: list[Table] = []
    with _stop_on_signals(console) as stop:
        live.doing("looking at every client's audio")
        check_machine(config)
        checked = check_models(config)
        live.doing(f"starting {config.simulation.num_workers} workers")

        def serve(grid: Grid) -> None:
            stop.gently = True
            tables.append(describe_federation(grid, checked, stop=stop))

        with live.libraries_write_to(cache_folder() / "dry_run.log"):
            simulate(config, serve, stop)
    output_console(110).print(tables[0])
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
    output = output_console(110)
    output.print(rounds_table(result.folder.metrics_file))
    for name, path in (
        ("curves", result.folder.plot_file),
        ("metrics", result.folder.metrics_file),
        ("last checkpoint", result.checkpoint),
    ):
        output.print(f"{name}: {near(path)}", soft_wrap=True, highlight=False)
    loss = result.validation.get("loss")
    return loss if isinstance(loss, float) else math.inf


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


class _Stop(threading.Event):
    """Set when the run was asked to stop. ``gently``: its server looks for it by itself, and has
    something to save; before, there is nothing to wait for."""

    gently = False


@contextmanager
def _stop_on_signals(console: Console) -> Iterator[_Stop]:
    """Turn Ctrl-C, SIGTERM, a terminal that closes and a scheduler's warning (SIGUSR1) into an
    event; a second Ctrl-C interrupts at once. What was ignored (``nohup``) stays so.

    Raises:
        RunInterrupted: where what is within was interrupted.
    """
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if not stop.gently or (stop.is_set() and number == signal.SIGINT):
            raise KeyboardInterrupt
        console.print(
            f"{signal.Signals(number).name}: stopping; the last finished round is kept",
            style="bold",
        )
        live.doing("stopping")
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    previous = (
        {
            number: signal.signal(number, ask)
            for number in signals
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        if threading.current_thread() is threading.main_thread()
        else {}
    )
    try:
        yield stop
    except KeyboardInterrupt:
        raise RunInterrupted("asked to stop") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
