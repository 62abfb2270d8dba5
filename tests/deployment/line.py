"""A line between the host and a site that can be cut."""

import contextlib
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Deployment

LINE_HOST, LINE_SITE = "10.203.7.1", "10.203.7.2"


@dataclass(frozen=True)
class Line:
    """A network namespace of the test's own, joined to the host by one virtual cable."""

    namespace: str
    host_address: str
    device: str

    def cut(self) -> None:
        ip("link", "set", self.device, "down")

    def heal(self) -> None:
        ip("link", "set", self.device, "up")


class Relay(socketserver.ThreadingTCPServer):
    """Pass connections to the cable's end on to the SuperLink, which listens on the loopback only."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, address: str, port: int) -> None:
        self.port = port
        super().__init__((address, port), RelayHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class RelayHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Relay)
        with socket.create_connection(("127.0.0.1", self.server.port)) as onward:
            back = threading.Thread(target=copy_bytes, args=(onward, self.request), daemon=True)
            back.start()
            copy_bytes(self.request, onward)
            back.join()


def copy_bytes(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@contextlib.contextmanager
def site_network(deployment: "Deployment") -> Iterator[Line]:
    """Make a namespace whose only way out is a cable to this host, and take both away at the end."""
    tag = deployment.mark[:6]
    line = Line(f"fedhubert-{tag}", LINE_HOST, f"fh{tag}")
    ip("netns", "add", line.namespace)
    try:
        ip(
            "link",
            "add",
            line.device,
            "type",
            "veth",
            "peer",
            "name",
            "uplink",
            "netns",
            line.namespace,
        )
        ip("address", "add", f"{LINE_HOST}/30", "dev", line.device)
        ip("link", "set", line.device, "up")
        ip("-n", line.namespace, "address", "add", f"{LINE_SITE}/30", "dev", "uplink")
        for device in ("uplink", "lo"):
            ip("-n", line.namespace, "link", "set", device, "up")
        with Relay(LINE_HOST, deployment.port) as relay:
            yield line
            relay.shutdown()
    finally:
        subprocess.run(["ip", "link", "delete", line.device], capture_output=True)
        subprocess.run(["ip", "netns", "delete", line.namespace], capture_output=True)
