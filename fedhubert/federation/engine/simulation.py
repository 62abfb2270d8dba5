"""A whole federation on this host: Flower's simulation engine on Ray, in this process.

``run_simulation`` is marked as deprecated in favour of ``flwr run``; this module is the only
caller, so that a change of Flower's touches one place. Both ways run the same server and client
code.
"""

import contextlib
import functools
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhubert.clients.settings import TOLD
from fedhubert.config import Config
from fedhubert.errors import ConfigError, FederationError
from fedhubert.federation.engine.hearing import clients_heard
from fedhubert.federation.site.answering import register
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.wire.flower import MENDING, workers_at_most
from fedhubert.federation.wire.grid import messages_in_flight
from fedhubert.models.hubert import build_hubert

log = logging.getLogger("fedhubert")

MANY_CLIENTS = 64
_LEAST_STORE_BYTES = 512 * 2**20
_LOOK_FOR_DEATHS_S = 1.0
_LOST_HOST = {
    "RAY_task_actor_unavailable_retry_delay_base_ms": "20000",
    "RAY_task_actor_unavailable_retry_max_delay_ms": "20000",
}
_LOST_HOST_RETRIES = 4
"""Ray finds out that a host of its cluster is gone after 15 s, or 65 where not even its kernel
answers (five health checks), and only then starts the workers elsewhere. What is tried again before
that fails, so that each try waits."""
_STARTS = "ConsolePopen"
"""What Ray starts its processes by."""


def num_supernodes(config: Config) -> int:
    """Return how many SuperNodes the simulation has: what ``simulation.num_supernodes`` says, or
    one per client.

    Of more clients than ``MANY_CLIENTS`` a few nodes play all: Flower takes 0.1 s to look at what
    each node has to do.
    """
    few = 2 * config.simulation.num_workers
    many = (
        config.federated.num_clients > MANY_CLIENTS
        and not strategy_of(config.federated).needs_every_update
    )
    wanted = config.simulation.num_supernodes or (few if many else config.federated.num_clients)
    if wanted > config.federated.num_clients:
        raise ConfigError(
            f"simulation.num_supernodes={wanted} is more than "
            f"federated.num_clients={config.federated.num_clients}",
            setting="simulation.num_supernodes",
        )
    return wanted


def federation_config(config: Config) -> str:
    """Return the ``--federation-config`` that gives ``flwr run`` the same federation."""
    cpus = max(1, (os.cpu_count() or 1) // config.simulation.num_workers)
    return (
        f"num-supernodes={num_supernodes(config)} client-resources-num-cpus={cpus} "
        f"client-resources-num-gpus={config.simulation.gpus_per_client}"
    )


def simulate(config: Config, serve: Callable[[Grid], None], stop: threading.Event) -> None:
    """Run ``serve`` as the ServerApp of a simulated federation and return when it does.

    Whatever ``serve`` raises is raised here. Ray is started with one CPU slot per worker and shut
    down at the end. ``stop`` is set when the engine fails under a server that is still waiting for
    it.
    """
    failure: list[BaseException] = []
    server_app, client_app = ServerApp(), ClientApp()
    register(client_app)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            with _deaths_said():
                serve(grid)
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
            _end_workers()

    from flwr.simulation import run_simulation

    most = workers_at_most(config.simulation.num_workers)
    with clients_heard() as told, _ray(config, told), _quiet_flower(), most:
        # Flower hands them all to Ray
        workers = {"num_cpus": 1, "num_gpus": config.simulation.gpus_per_client, **MENDING}
        if config.simulation.ray_address:
            workers["max_task_retries"] = _LOST_HOST_RETRIES
        backend = {"client_resources": workers}
        try:
            run_simulation(server_app, client_app, num_supernodes(config), backend_config=backend)  # type: ignore[arg-type]
        except Exception as error:
            if failure:  # Flower lacks the workers that were ended, and nothing else
                raise failure[0] from None
            stop.set()  # the ServerApp's thread would go on waiting for nodes
            raise FederationError(
                f"Flower's simulation engine failed: {error.__cause__ or error}",
                setting="simulation",
            ) from error
    if failure:
        raise failure[0]


@contextlib.contextmanager
def _ray(config: Config, told: Path) -> Iterator[None]:
    """Start Ray ourselves, before Flower does: we choose its size, and what is wrong with it is
    said by name. Workers write what fails to ``told``, too."""
    if config.simulation.ray_address:
        os.environ.update(_LOST_HOST | os.environ)
    import ray

    simulation = config.simulation
    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {
        "log_to_driver": False,
        "runtime_env": {"env_vars": {"PYTHONPATH": path, TOLD: str(told)}},
    }
    if simulation.ray_address:
        _check_address(simulation.ray_address)
        options["address"] = simulation.ray_address
    else:
        options |= {
            "num_cpus": simulation.num_workers,
            "num_gpus": simulation.num_gpus,
            "include_dashboard": False,
        }
        options["object_store_memory"] = object_store_bytes(
            _num_parameters(config),
            simulation.num_workers,
            sharded=num_supernodes(config) < config.federated.num_clients,
        )
    # no share of a GPU means that none is seen
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    # a tip about the variable that is set above
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\b")
    try:
        with _out_of_our_group(), _our_signals():
            ray.init(logging_level=logging.ERROR, **options)
    except Exception as error:
        setting = "ray_address" if simulation.ray_address else "num_workers"
        names = ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR")
        around = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
        where = f" (in the environment: {', '.join(around)})" if around else ""
        raise ConfigError(
            f"Ray did not start with simulation.{setting}={getattr(simulation, setting)}{where}: "
            f"{error} Where this machine is busy with other work, try again later.",
            setting=f"simulation.{setting}",
        ) from None
    try:
        wanted, there = simulation.gpus_per_client, float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
        if wanted > there:
            raise ConfigError(
                f"simulation.gpus_per_client={wanted}, but Ray finds {there:g} GPUs here; use a "
                "smaller share, or 0 to train on the CPU",
                setting="simulation.gpus_per_client",
            )
        if there and not wanted:
            log.warning(
                "%g GPUs here are not used: set simulation.gpus_per_client, for example to %g",
                there,
                there / simulation.num_workers,
            )
        yield
    finally:
        ray.shutdown()


def _end_workers() -> None:
    """End the workers where they are: Flower would wait until each is done with its client, which
    nobody asks for any more."""
    import ray

    if not ray.is_initialized():
        return
    # what Flower would print of each that it misses
    logging.getLogger("flwr").setLevel(logging.CRITICAL + 1)
    with contextlib.suppress(Exception):  # Ray is going down, or has this elsewhere: Flower waits
        kill = importlib.import_module("ray._private.worker").global_worker.core_worker.kill_actor
        for number in _actors_of(_job()):
            kill(ray.ActorID.from_hex(number), True)


def _job() -> Any:
    """Return this process's job; where Ray has ended, this would start it anew: ask before."""
    import ray

    return ray.JobID.from_hex(ray.get_runtime_context().get_job_id())


def _actors_of(job: Any) -> dict[str, dict[str, Any]]:
    """Return id -> what Ray knows of it, of a job's actors."""
    from ray._private.state import actors

    found: dict[str, dict[str, Any]] = actors(job_id=job)
    return found


@contextlib.contextmanager
def _out_of_our_group() -> Iterator[None]:
    """Start Ray's processes in groups of their own: what a terminal or a scheduler sends to ours is
    for us, who stop them in order. They end with this process, however it ends."""
    try:
        services = importlib.import_module("ray._private.services")
        popen = getattr(services, _STARTS)
    except (ImportError, AttributeError):  # Ray has it elsewhere: a run does without
        yield
        return
    setattr(services, _STARTS, functools.partial(popen, process_group=0))
    try:
        yield
    finally:
        setattr(services, _STARTS, popen)


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Keep the handlers of signals that Ray would put its own in the place of, which dump
    stacks."""
    names = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in names}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


def object_store_bytes(numel: int, num_workers: int, *, sharded: bool) -> int:
    """Return the size of Ray's object store for a model of ``numel`` parameters.

    It holds two models (this round's and, for a moment, the last one's; later an update that waits
    to be added with the next one) and the replies in flight. A reply is float32, or, where nodes
    host several clients, the 8 bytes a parameter of their exact sums, which do not wait. Without a
    limit Ray would go on to fresh memory before it uses again what was freed; above four fifths of
    the limit it moves objects to disk.
    """
    needed = numel * (2 * 4 + messages_in_flight(num_workers) * (8 if sharded else 4))
    return max(_LEAST_STORE_BYTES, int(needed / 0.75))


def _num_parameters(config: Config) -> int:
    return sum(
        parameter.numel() for parameter in build_hubert(config.model, config.seed).parameters()
    )


def _check_address(address: str) -> None:
    """Knock at ``host:port``: Ray itself would try for minutes. Raises :class:`ConfigError`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name that Ray knows what to do with
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise ConfigError(
            f"nothing answers at simulation.ray_address={address} ({error}); start Ray there, or "
            "leave it out to start one here",
            setting="simulation.ray_address",
        ) from None


@contextlib.contextmanager
def _deaths_said() -> Iterator[None]:
    """Warn of every worker process that dies (out of memory, killed): Ray puts another in its place
    and says nothing."""
    over, job = threading.Event(), _job()

    def watch() -> None:
        said, last = 0, False
        while not last:
            last = over.wait(_LOOK_FOR_DEATHS_S)
            try:
                died = sum(int(actor["NumRestarts"]) for actor in _actors_of(job).values())
            except Exception:  # Ray is going down, or has this elsewhere: a run does without
                return
            if died > said:
                log.warning("a worker process has died; a new one takes its place")
            said = died

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
