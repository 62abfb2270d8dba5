"""A SuperNode that runs no code: its command, and the API by which it hands out messages."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.app import Error, Message

from fedhubert.errors import FedhubertError
from fedhubert.federation.wire.flower.private import UnsupportedFlower, private

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
                        private(_RUNTIME, "SendTaskHeartbeatRequest")()
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
            message, context, _, _ = private(_CLIENT_APP, "pull_task_input")(client)
        return Task(message, context.run_id, context.node_id)

    def pull_envelope(self, token: str) -> Task | None:
        """Return the message of a task without its content, so that it can be refused; None where
        it has been pulled already."""
        with self._client(token) as client:
            found = client.PullMessages(private(_RUNTIME, "PullAppMessagesRequest")()).messages_list
        if not found:
            return None
        message: Message = private("flwr.common.serde", "message_from_proto")(found[0])
        return Task(message, message.metadata.run_id, message.metadata.dst_node_id)

    def push(self, token: str, reply: Message, task: Task) -> None:
        """Hand over the reply to the message of ``task``."""
        with self._client(token) as client:
            private(_CLIENT_APP, "push_message")(client, reply, task)

    def finish(self, token: str, error: str = "") -> None:
        """Say that the task is over; ``error``: why it failed. Not before its reply is there: the
        SuperNode waits for one."""
        status = private("flwr.common.constant", "SubStatus")
        state = status.FAILED if error else status.COMPLETED
        with self._client(token) as client:
            private(_CLIENT_APP, "push_task_output")(client, None, state, error)

    @cached_property
    def _claiming(self) -> Any:
        """The connection for :meth:`claim`, which is called several times a second."""
        signs = private("flwr.supercore.interceptors", "SuperExecAuthHttpInterceptor")
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
        return private(_RUNTIME, "AcquireTaskRequest")(
            supported_task_types=list(private("flwr.supercore.constant", "TaskType"))
        )

    def _connect(self, interceptor: object) -> Any:
        version = private("flwr.supercore.interceptors", "RuntimeVersionHttpInterceptor")(
            component_name="flwr-clientapp"
        )
        return private("flwr.supercore.runtime", "RuntimeHttpClient").from_server_address(
            server_address=self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[version, interceptor],
        )

    @contextmanager
    def _client(self, token: str) -> Iterator[Any]:
        with self._saying_who():
            client = self._connect(
                private("flwr.supercore.interceptors", "RuntimeTokenHttpInterceptor")(token)
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
        Error(code=private("flwr.common.constant", "ErrorCode").CLIENT_APP_CRASHED, reason=reason),
        reply_to=message,
    )


def supernode_command(
    superlink: str, port: int, secret: Path, certificates: Path | None, key: Path | None
) -> list[str]:
    """Return the command of a SuperNode that runs no code: it hands out messages on this host's
    loopback to who has the secret.
    """
    command = [
        sys.executable,
        "-P",  # what lies in the folder that the site was started in is nobody's module
        "-m",
        "fedhubert.federation.wire.flower.supernode_process",
        f"--superlink={superlink}",
        "--isolation=process",
        "--host=127.0.0.1",
        f"--port={port}",
    ]
    command += [f"--superexec-auth-secret-file={secret}"]
    command += [f"--root-certificates={certificates}"] if certificates else ["--insecure"]
    return command + ([f"--auth-supernode-private-key={key}"] if key else [])
