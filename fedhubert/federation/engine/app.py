"""What Flower's ServerApp runs: from ``flwr run``'s overrides to a federation."""

import logging
import shlex

from flwr.app import Context
from flwr.serverapp import Grid

from fedhubert.compose import compose
from fedhubert.errors import FedhubertError
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.wire.arrays import put_together_once
from fedhubert.federation.wire.flower import is_simulated
from fedhubert.federation.wire.flower.waits import shorten_waits
from fedhubert.federation.wire.grid import SITES_IN_FLIGHT, PackingGrid, messages_in_flight
from fedhubert.memory import keep_freed
from fedhubert.reporting.console import log_to_terminal
from fedhubert.reporting.curves import plot_curves

log = logging.getLogger("fedhubert")


def run_app(grid: Grid, context: Context) -> None:
    """Run the federation that ``flwr run`` asks for; raises what :func:`run_federation` raises, so
    that Flower reports a failed run."""
    console = log_to_terminal()
    try:
        config = compose(shlex.split(str(context.run_config.get("overrides", ""))))
        if config.dry_run:
            console.print(describe_federation(grid, check_models(config)))
            return
        simulated = is_simulated(grid)
        if not simulated:
            shorten_waits("grid")
            keep_freed()
            put_together_once()
            grid = PackingGrid(grid)
        window = messages_in_flight(config.simulation.num_workers) if simulated else SITES_IN_FLIGHT
        result = run_federation(grid, config, window=window)
    except FedhubertError as error:
        log.error("error: %s", error)
        raise
    plot_curves(result.folder.metrics_file, result.folder.plot_file)
    log.info("curves: %s", result.folder.plot_file)
    log.info("last checkpoint: %s", result.checkpoint)
