"""A whole federation on this host: Flower's simulation engine on Ray, in this process.

``run_simulation`` is marked as deprecated in favour of ``flwr run``; this module is the only caller, so that a change of Flower's touches one
place. Both ways run the same server and client code.
"""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhubert.config import Config
from fedhubert.errors import ConfigError, FederationError
from fedhubert.federation.client import register

log = logging.getLogger("fedhubert")


def num_supernodes(config: Config) -> int:
    """Return how many SuperNodes the simulation has: one per client unless ``simulation.num_supernodes`` says fewer."""
    wanted = config.simulation.num_supernodes or config.federated.num_clients
    if wanted > config.federated.num_clients:
        raise ConfigError(
            f"simulation.num_supernodes={wanted} is more than federated.num_clients={config.federated.num_clients}",
            setting="simulation.num_supernodes",
        )
    return wanted


def federation_config(config: Config) -> str:
    """Return the ``--federation-config`` that gives ``flwr run`` the same federation."""
    cpus = max(1, (os.cpu_count() or 1) // config.simulation.num_workers)
    return f"num-supernodes={num_supernodes(config)} client-resources-num-cpus={cpus} client-resources-num-gpus={config.simulation.gpus_per_client}"


def simulate(config: Config, serve: Callable[[Grid], None], stop: threading.Event) -> None:
    """Run ``serve`` as the ServerApp of a simulated federation and return when it does.

    Whatever ``serve`` raises is raised here. Ray is started with one CPU slot per worker and shut down at the end. ``stop`` is set when the engine
    fails under a server that is still waiting for it.
    """
    failure: list[BaseException] = []
    server_app, client_app = ServerApp(), ClientApp()
    register(client_app)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            serve(grid)
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)

    from flwr.simulation import run_simulation

    with _ray(config), _quiet_flower():
        backend = {"client_resources": {"num_cpus": 1, "num_gpus": config.simulation.gpus_per_client}}
        try:
            run_simulation(server_app, client_app, num_supernodes(config), backend_config=backend)  # type: ignore[arg-type]
        except Exception as error:
            stop.set()  # the ServerApp's thread would go on waiting for nodes
            raise FederationError(
                f"Flower's simulation engine failed: {error.__cause__ or error}", setting="simulation"
            ) from error
    if failure:
        raise failure[0]


@contextlib.contextmanager
def _ray(config: Config) -> Iterator[None]:
    """Start Ray ourselves, before Flower does: we choose its size, and what is wrong with it is said by name."""
    import ray

    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path}
    options: dict[str, Any] = {"num_cpus": config.simulation.num_workers, "include_dashboard": False, "log_to_driver": False}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # no share of a GPU means that none is seen
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\b")  # a tip about the variable that is set above
    try:
        ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": environment}, **options)
    except Exception as error:
        raise ConfigError(
            f"Ray did not start with simulation.num_workers={config.simulation.num_workers}: {error}",
            setting="simulation.num_workers",
        ) from None
    try:
        wanted, there = config.simulation.gpus_per_client, float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
        if wanted > there:
            raise ConfigError(
                f"simulation.gpus_per_client={wanted}, but Ray finds {there:g} GPUs here; use a smaller share, or 0 to train on the CPU",
                setting="simulation.gpus_per_client",
            )
        if there and not wanted:
            log.warning(
                "%g GPUs here are not used: set simulation.gpus_per_client, for example to %g",
                there,
                there / config.simulation.num_workers,
            )
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Keep Flower's own lines to warnings and up; ours say what a user needs."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
