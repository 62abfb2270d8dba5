"""The one door to Flower: its public classes by one name each, and every private part of it that
fedhubert uses.

Outside of ``federation/engine`` and the two apps, nothing else imports ``flwr``. A private part is
looked up when it is wanted. Where a Flower has moved it, :class:`UnsupportedFlower` names it and
the versions that are supported, or, where a run can do without, a warning does: a real site does
not stop because a class of the simulation has another place.
"""

import importlib
import importlib.metadata
import io
import logging
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedhubert.errors import FedhubertError

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
    "SuperNodeApi",
    "Task",
    "Unreachable",
    "UnsupportedFlower",
    "activations",
    "error_reply",
    "is_simulated",
    "mend_workers",
    "public_keys",
    "registered_nodes",
    "supernode_command",
    "supported",
]

log = logging.getLogger("fedhubert")

MENDING = {"max_restarts": -1, "max_task_retries": 1}
"""Ray's options for a simulation's workers: one that dies (out of memory, killed) comes back, and
its client's work is done once more."""


class UnsupportedFlower(FedhubertError):
    """This Flower lacks a part that fedhubert needs."""

    code = "flower_version"


def supported() -> str:
    """Return the versions of Flower that fedhubert supports, as its installed metadata has them."""
    try:
        needs = importlib.metadata.requires("fedhubert") or []
    except importlib.metadata.PackageNotFoundError:
        needs = []
    return next(
        (need for need in needs if need.startswith("flwr")),
        "flwr: see dependencies in pyproject.toml",
    )


def _lacks(what: str) -> UnsupportedFlower:
    return UnsupportedFlower(
        f"Flower {importlib.metadata.version('flwr')} has no {what}; fedhubert supports {supported()}"
    )


try:
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Error,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy
except ImportError as error:
    raise _lacks(f"part that is public in those: {error}") from None


def _private(module: str, name: str) -> Any:
    """Return ``name`` of one of Flower's private modules.

    Raises:
        UnsupportedFlower: this Flower has it elsewhere, or no more.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise _lacks(f"{module}.{name}") from None


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
        raise _lacks("NodeInfo.public_key, which federated.node_keys needs") from None


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
    connection = _private("flwr.cli.flower_config", "read_superlink_connection")
    connect = _private("flwr.cli.utils", "init_http_client_from_connection")
    question = _private("flwr.proto.control_pb2", "ListNodesRequest")
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
        simulated = _private("flwr.superlink.grid", "InMemoryGrid")
    except UnsupportedFlower as error:
        log.warning("%s: taken for a federation of real sites", error)
        return False
    return isinstance(grid, simulated)


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

        _private(backend, "ClientAppActor")
        worker = _private("flwr.simulation.ray_transport.ray_actor", "VirtualClientEngineActor")
    except (ImportError, UnsupportedFlower) as error:
        log.warning("%s: a worker that dies is not replaced", error)
        return

    class ClientAppActor(worker):  # type: ignore[misc, valid-type]
        """Flower's own, by the same name."""

    mended = ray.remote(
        max_restarts=MENDING["max_restarts"], max_task_retries=MENDING["max_task_retries"]
    )(ClientAppActor)
    setattr(sys.modules[backend], ClientAppActor.__name__, mended)


NODE_IS_ONLINE = "SuperNode ID:"
KEY_IS_NOT_TAKEN = "[code: 2004]"
REPLY_IS_SENT = "Sent successfully"
REPLY_IS_NOT_SENT = ("Failed to send message", "Ignoring reply message")
"""What a SuperNode's output says; it has no other way to say it."""


class Unreachable(FedhubertError):
    """A SuperNode does not answer, or no longer takes what belongs to a task."""

    code = "supernode"


@dataclass(frozen=True)
class Task:
    """A message that a SuperNode has handed out, and what a reply to it needs besides."""

    message: Message
    run_id: int
    node_id: int


@dataclass(frozen=True)
class SuperNodeApi:
    """The API by which a SuperNode with ``--isolation process`` hands out messages, for who does
    the work of the SuperExec and of ``flwr-clientapp``.

    Attributes:
        address: ``HOST:PORT``; plain HTTP, so on the loopback or a network of the site's own.
        secret: What the SuperNode's ``--superexec-auth-secret-file`` holds: only who has it is
            given tasks.

    Every method raises :class:`Unreachable` where the SuperNode does not answer or refuses,
    :class:`UnsupportedFlower` where this Flower has no such API.
    """

    address: str
    secret: bytes = field(repr=False)

    def claim(self) -> str | None:
        """Return the token of the next message's task, None where there is none."""
        with self._saying_who():
            answer = self._claiming.AcquireTask(self._any_task)
        return str(answer.token) if answer.HasField("task") and answer.token else None

    def beat(self, token: str) -> bool:
        """Say that the task is being worked on; return whether anybody still wants it. To be called
        at least twice a minute."""
        try:
            with self._client(token) as client:
                return bool(
                    client.SendTaskHeartbeat(
                        _private(_RUNTIME, "SendTaskHeartbeatRequest")()
                    ).success
                )
        except Unreachable as error:
            # the token is no more
            if getattr(getattr(error.__cause__, "response", None), "status_code", 0) in (401, 403):
                return False
            raise

    def pull(self, token: str) -> Task:
        """Return the message of a task. The code that came with its run comes along as bytes that
        nobody looks at."""
        with self._client(token) as client:
            message, context, _, _ = _private(_CLIENT_APP, "pull_task_input")(client)
        return Task(message, context.run_id, context.node_id)

    def pull_envelope(self, token: str) -> Task | None:
        """Return the message of a task without its content, so that it can be refused; None where
        it has been pulled already."""
        with self._client(token) as client:
            found = client.PullMessages(
                _private(_RUNTIME, "PullAppMessagesRequest")()
            ).messages_list
        if not found:
            return None
        message: Message = _private("flwr.common.serde", "message_from_proto")(found[0])
        return Task(message, message.metadata.run_id, message.metadata.dst_node_id)

    def push(self, token: str, reply: Message, task: Task) -> None:
        """Hand over the reply to the message of ``task``."""
        with self._client(token) as client:
            _private(_CLIENT_APP, "push_message")(client, reply, task)

    def finish(self, token: str, error: str = "") -> None:
        """Say that the task is over; ``error``: why it failed. Not before its reply is there: the
        SuperNode waits for one."""
        status = _private("flwr.common.constant", "SubStatus")
        state = status.FAILED if error else status.COMPLETED
        with self._client(token) as client:
            _private(_CLIENT_APP, "push_task_output")(client, None, state, error)

    @cached_property
    def _claiming(self) -> Any:
        """The connection for :meth:`claim`, which is called several times a second."""
        signs = _private("flwr.supercore.interceptors", "SuperExecAuthHttpInterceptor")
        return self._connect(
            signs(
                master_secret=self.secret,
                protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}),
            )
        )

    @cached_property
    def _any_task(self) -> Any:
        """Tasks of every kind: the SuperNode passes on nothing more before each message has a
        reply."""
        return _private(_RUNTIME, "AcquireTaskRequest")(
            supported_task_types=list(_private("flwr.supercore.constant", "TaskType"))
        )

    def _connect(self, interceptor: object) -> Any:
        version = _private("flwr.supercore.interceptors", "RuntimeVersionHttpInterceptor")(
            component_name="flwr-clientapp"
        )
        return _private("flwr.supercore.runtime", "RuntimeHttpClient").from_server_address(
            server_address=self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[version, interceptor],
        )

    @contextmanager
    def _client(self, token: str) -> Iterator[Any]:
        with self._saying_who():
            client = self._connect(
                _private("flwr.supercore.interceptors", "RuntimeTokenHttpInterceptor")(token)
            )
            try:
                yield client
            finally:
                client.close()

    @contextmanager
    def _saying_who(self) -> Iterator[None]:
        try:
            yield
        except UnsupportedFlower:
            raise
        except Exception as error:  # of the HTTP library, and whatever Flower makes of an answer
            raise Unreachable(
                f"SuperNode at {self.address}: {type(error).__name__}: {error}"
            ) from error


_RUNTIME = "flwr.proto.runtime_pb2"
_CLIENT_APP = "flwr.supernode.runtime.run_clientapp"


def error_reply(message: Message, reason: str) -> Message:
    """Return a reply to ``message`` that says that there is none; ``reason`` leaves the site."""
    return Message(
        Error(code=_private("flwr.common.constant", "ErrorCode").CLIENT_APP_CRASHED, reason=reason),
        reply_to=message,
    )


def supernode_command(
    superlink: str, port: int, secret: Path, certificates: Path | None, key: Path | None
) -> list[str]:
    """Return the command of a SuperNode that runs no code: it hands out messages on this host's
    loopback to who has the secret.

    Raises:
        UnsupportedFlower: the command is not installed.
    """
    beside = Path(sys.executable).with_name("flower-supernode")
    program = str(beside) if beside.is_file() else shutil.which("flower-supernode")
    if program is None:
        raise _lacks("command flower-supernode beside this Python")
    command = [
        program,
        f"--superlink={superlink}",
        "--isolation=process",
        "--host=127.0.0.1",
        f"--port={port}",
    ]
    command += [f"--superexec-auth-secret-file={secret}"]
    command += [f"--root-certificates={certificates}"] if certificates else ["--insecure"]
    return command + ([f"--auth-supernode-private-key={key}"] if key else [])
