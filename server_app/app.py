"""The Flower ServerApp: composes the configuration from the run's overrides and runs the
federation."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhubert.federation.engine.app import run_app

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of ``flwr run``; ``overrides`` in the run configuration are Hydra overrides,
    split like a shell would."""
    run_app(grid, context)
