"""The one door to Flower: its public classes by one name each, and every private part of it that
fedhubert uses.

Outside of ``federation/engine`` and the two apps, nothing else imports ``flwr``. A private part is
looked up when it is wanted. Where a Flower has moved it, :class:`UnsupportedFlower` names it and
the versions that are supported, or, where a run can do without, a warning does: a real site does
not stop because a class of the simulation has another place. What a SuperNode hands out is in
:mod:`.supernode`, and the looking up in :mod:`.private`.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedhubert.errors import FedhubertError
from fedhubert.federation.wire.flower.private import UnsupportedFlower, lacks, private, supported

if TYPE_CHECKING:  # what the type checker alone needs of Flower's insides
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run


__all__ = [
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "FedAvg",
    "FedMedian",
    "FedTrimmedAvg",
    "ForwardingGrid",
    "Grid",
    "Krum",
    "LazyArray",
    "Message",
    "MetricRecord",
    "RecordDict",
    "Strategy",
    "UnsupportedFlower",
    "activations",
    "is_simulated",
    "mend_workers",
    "public_keys",
    "registered_nodes",
    "supported",
    "workers_at_most",
]

log = logging.getLogger("fedhubert")

_FITTING = "pool_size_from_resources"
"""What says how many workers fit."""

MENDING = {"max_restarts": -1, "max_task_retries": 1}
"""Ray's options for a simulation's workers: one that dies (out of memory, killed) comes back, and
its client's work is done once more."""


try:
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy
except ImportError as error:
    raise lacks(f"part that is public in those: {error}") from None


class LazyArray(Array):
    """An ``Array`` whose bytes are made when it goes over a wire; subclasses hold the numbers and
    return them by :meth:`numpy`.

    Put it into an ``ArrayRecord`` by ``record[name] = array``: the record's constructor makes
    ordinary ones.
    """

    def __init__(self, ndarray: npt.NDArray[Any]) -> None:
        self.__dict__.update(
            dtype=str(ndarray.dtype), shape=tuple(ndarray.shape), stype="numpy.ndarray"
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes that an ordinary ``Array`` would hold, made anew each time."""
        buffer = io.BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def deflate(self) -> bytes:
        """Return what an ordinary ``Array`` would: on the wire an object is called by its class,
        and Flower knows no other."""
        chunks = self.slice_array()
        # a Flower that keeps them elsewhere: serialised once more
        if self.__dict__.get("_chunks") is not chunks:
            return Array(self.numpy()).deflate()
        plain = Array(dtype=self.dtype, shape=self.shape, stype=self.stype, data=b"")
        plain.__dict__["_chunks"] = chunks
        return plain.deflate()


class ForwardingGrid(Grid):
    """A ``Grid`` that hands every call on to another."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> object:
        return getattr(self._grid, name)

    def set_run(self, run: "Run") -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> "Run":
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable["NodeInfo"]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


def public_keys(grid: Grid) -> dict[int, bytes]:
    """Return node id -> public key (PEM) of the connected nodes, as the SuperLink knows them.

    Raises:
        UnsupportedFlower: this Flower does not say them, so that nothing can be held against them.
    """
    try:
        return {node.node_id: node.public_key for node in grid.get_nodes()}
    except (AttributeError, NotImplementedError):
        raise lacks("NodeInfo.public_key, which federated.node_keys needs") from None


def activations(grid: Grid) -> dict[int, str]:
    """Return node id -> when its SuperNode last came online, as the SuperLink wrote it down, of the
    connected nodes: another time than before means that it was started anew.

    Empty where this Flower, or this grid, does not say it.
    """
    try:
        return {node.node_id: node.last_activated_at for node in grid.get_nodes()}
    except (AttributeError, NotImplementedError):
        return {}


def registered_nodes() -> dict[int, bytes]:
    """Return node id -> public key (PEM) of all nodes that are registered at the SuperLink of the
    ``flwr`` command's configuration, online or not.

    Raises:
        UnsupportedFlower: this Flower has no such list where it is looked for.
        FedhubertError: the SuperLink does not answer.
    """
    connection = private("flwr.cli.flower_config", "read_superlink_connection")
    connect = private("flwr.cli.utils", "init_http_client_from_connection")
    question = private("flwr.proto.control_pb2", "ListNodesRequest")
    try:
        client = connect(connection(None))
        try:
            nodes = client.ListNodes(question()).nodes_info
        finally:
            client.close()
    except Exception as error:  # typer's and httpx's alike
        raise FedhubertError(
            f"flwr's SuperLink does not answer: {error}; flwr supernode list says more",
            setting="--revoke",
        ) from None
    return {node.node_id: node.public_key for node in nodes if node.status != "unregistered"}


def is_simulated(grid: Grid) -> bool:
    """Return whether Flower's simulation carries the messages; of a Flower that has moved its
    class: no, with a warning."""
    try:
        simulated = private("flwr.superlink.grid", "InMemoryGrid")
    except UnsupportedFlower as error:
        log.warning("%s: taken for a federation of real sites", error)
        return False
    return isinstance(grid, simulated)


@contextlib.contextmanager
def workers_at_most(most: int) -> Iterator[None]:
    """Have Flower's simulation start at most so many workers: it takes every processor that Ray
    has, and where a host of a cluster is gone its workers need a free one elsewhere."""
    where = "flwr.simulation.ray_transport.ray_actor"
    try:
        fitting = private(where, _FITTING)
    except UnsupportedFlower as error:
        log.warning("%s: as many workers as Ray has processors", error)
        yield
        return
    setattr(sys.modules[where], _FITTING, lambda resources: min(most, fitting(resources)))
    try:
        yield
    finally:
        setattr(sys.modules[where], _FITTING, fitting)


def mend_workers() -> None:
    """Have the workers of ``flwr run``'s simulation come back when they die; does nothing where no
    simulation runs, as on a real site.

    ``fedhubert train`` gives Flower :data:`MENDING` itself; ``flwr run`` has no way to say it. To
    be called before Flower makes its workers, which it does once the ClientApp is loaded.
    """
    if "flwr.simulation.app" not in sys.modules:
        return
    backend = "flwr.server.superlink.fleet.vce.backend.raybackend"
    try:
        import ray

        private(backend, "ClientAppActor")
        worker = private("flwr.simulation.ray_transport.ray_actor", "VirtualClientEngineActor")
    except (ImportError, UnsupportedFlower) as error:
        log.warning("%s: a worker that dies is not replaced", error)
        return

    class ClientAppActor(worker):  # type: ignore[misc, valid-type]
        """Flower's own, by the same name."""

    mended = ray.remote(
        max_restarts=MENDING["max_restarts"], max_task_retries=MENDING["max_task_retries"]
    )(ClientAppActor)
    setattr(sys.modules[backend], ClientAppActor.__name__, mended)
