"""A federation of real processes on this host's loopback: one SuperLink, three SuperNodes, TLS, node authentication.

Every process carries a mark in its environment, by which all of them (also those that Flower starts and detaches) are found and ended.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile

from fedhubert.cli import main
from tests.federation.in_process import open_policy

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NODES = 3
LINE_HOST, LINE_SITE = "10.203.7.1", "10.203.7.2"
LONG_S = 300.0  # how long to wait for what takes seconds on a machine with nothing else to do
MARK = "FEDHUBERT_TEST_DEPLOYMENT"
SMALL = [
    "experiment=demo_fedavg",
    "model.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    "model.embed_dim=32",
    "model.ffn_dim=64",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.pos_conv_kernel=16",
    "model.pos_conv_groups=4",
    "data.partition.column=speaker",
    "data.min_seconds=0.5",
    "data.max_seconds=1.5",
    "data.batch_seconds=3",
    "targets=precomputed",
    "targets.labels=column:ids",
    "targets.label_rate_hz=50",
    "targets.num_clusters=8",
    f"federated.num_clients={NODES}",
    "federated.num_rounds=2",
    "client.local_steps=1",
    "client.threads=1",
    "checkpoint.every=1",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A process in a session of its own, with its output in a file."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = LONG_S) -> None:
        """Wait until its output contains ``text``."""

        def there() -> bool:
            if text in self.text():
                return True
            assert self.popen.poll() is None, (
                f"{self.name} ended with {self.popen.returncode}:\n{self.text()}"
            )
            return False

        wait_until(there, f"{text!r} in the output of {self.name}", timeout_s, self.text)

    def kill(self) -> None:
        """Kill it and what it started at once, as a machine that loses power would."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def terminate(self) -> None:
        """End it as a service manager would, so that the SuperLink knows."""
        self.popen.terminate()
        self.wait()

    def wait(self, timeout_s: float = LONG_S) -> int:
        """Wait until it ends by itself and return its exit code."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} goes on after {timeout_s} s:\n{self.text()}"
            ) from None


def wait_until(
    check: Callable[[], Any], what: str, timeout_s: float, more: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s\n{more()}"
        time.sleep(0.2)


def marked_processes(mark: str) -> Iterator[tuple[int, str]]:
    """Yield (pid, command line) of the live processes that carry ``mark`` in their environment."""
    needle = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if needle in (folder / "environ").read_bytes().split(b"\0"):
                yield (
                    int(folder.name),
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                )
        except (OSError, ProcessLookupError):
            continue


class Deployment:
    """One SuperLink on a free port with its own FLWR_HOME, certificates and database; SuperNodes as asked for."""

    def __init__(self, folder: Path, num_sites: int = NODES) -> None:
        self.folder, self.num_sites = folder, num_sites
        self.port = free_port()
        self.mark = uuid.uuid4().hex
        self.certs = folder / "certs"
        self.started = 0
        self.registered: dict[str, int] = {}
        self.node: dict[int, Running] = {}
        home = folder / "flwr"
        home.mkdir(parents=True)
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FEDHUBERT_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        assert (
            main(
                [
                    "certs",
                    "--out",
                    str(self.certs),
                    "--host",
                    LINE_HOST,
                    "--nodes",
                    str(num_sites + 1),
                ]
            )
            == 0
        )
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.certs / "ca.crt"}"\n'
        )

    def start(
        self, name: str, *command: str, inside: str | None = None, modules: Path | None = None
    ) -> Running:
        """Start one of Flower's commands, in network namespace ``inside`` if one is named; ``modules`` come first in Python's path."""
        self.started += 1
        log = self.folder / f"{self.started:02d}-{name}.log"
        prefix = ["ip", "netns", "exec", inside] if inside else []
        path = os.pathsep.join(
            filter(None, [str(modules or ""), self.environment.get("PYTHONPATH")])
        )
        environment = self.environment | ({"PYTHONPATH": path} if path else {})
        return Running(name, [*prefix, str(BIN / command[0]), *command[1:]], environment, log)

    def start_superlink(self, *command: str) -> Running:
        """Start it by Flower's command, or another."""
        tls = [f"--ssl-{kind}file={self.certs / file}" for kind, file in TLS_FILES]
        where = [
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--database={self.folder / 'superlink.db'}",
        ]
        superlink = self.start(
            "superlink",
            *(command or ["flower-superlink"]),
            *tls,
            *where,
            "--enable-supernode-auth",
        )
        superlink.wait_for("Uvicorn running on https://")
        self.superlink = superlink
        return superlink

    def start_node(
        self,
        number: int,
        *options: str,
        superlink: str = "127.0.0.1",
        port: int | None = None,
        **how: Any,
    ) -> Running:
        """Start SuperNode ``number``; ``options`` replace those that make it secure."""
        site = self.folder / f"site-{number}"
        places = f'manifest="{site / "manifest.csv"}" state-dir="{site / "state"}" policy="{open_policy(self.folder)}"'
        config = f"partition-id={number} num-partitions={self.num_sites} {places}"
        secure = [
            f"--root-certificates={self.certs / 'ca.crt'}",
            f"--auth-supernode-private-key={self.certs / f'node-{number}.key'}",
        ]
        where = [
            f"--superlink={superlink}:{port or self.port}",
            f"--port={free_port()}",
            f"--node-config={config}",
        ]
        return self.start(f"node-{number}", "flower-supernode", *where, *(options or secure), **how)

    def start_site(
        self, number: int, *options: str, superlink: str = "127.0.0.1", **how: Any
    ) -> Running:
        """Start site ``number`` by `fedhubert site`; ``options`` replace those that make it secure."""
        site = self.folder / f"site-{number}"
        secure = [
            f"--root-certificates={self.certs / 'ca.crt'}",
            f"--key={self.certs / f'node-{number}.key'}",
        ]
        what = [
            f"--superlink={superlink}:{self.port}",
            f"--number={number}",
            f"--of={self.num_sites}",
        ]
        where = [f"--manifest={site / 'manifest.csv'}", f"--state-dir={site / 'state'}"]
        where.append(f"--policy={open_policy(self.folder)}")
        return self.start(
            f"site-{number}", "fedhubert", "site", *what, *where, *(options or secure), **how
        )

    def restart_node(self, number: int, **how: Any) -> Running:
        """Start the node again and again, as a service manager would, until the SuperLink takes it.

        It refuses a key whose node is still held to be online: up to 60 s (two missed heartbeats) after a node died.
        """
        deadline = time.monotonic() + LONG_S
        while True:
            node = self.start_node(number, **how)
            while "SuperNode ID:" not in node.text() and node.popen.poll() is None:
                time.sleep(0.2)
            if node.popen.poll() is None:
                return node
            assert time.monotonic() < deadline, node.text()

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "flwr"), *arguments]
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def flwr_json(self, *arguments: str) -> Any:
        done = self.flwr(*arguments, "--format", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def register(self, number: int) -> None:
        answer = self.flwr_json(
            "supernode",
            "register",
            str(self.certs / f"node-{number}.pub"),
            "--name",
            f"site-{number}",
        )
        self.registered[str(answer["node-id"])] = number

    def nodes(self) -> dict[int | None, str]:
        """Return node number -> status as ``flwr supernode list`` has it (None: a node that was not registered here)."""
        listed = self.flwr_json("supernode", "list")["nodes"]
        return {self.registered.get(node["node-id"]): node["status"] for node in listed}

    def run(self, out: Path, *overrides: str) -> str:
        """Submit a run and return its id."""
        text = " ".join([*SMALL, f"out={out}", *overrides])
        return self.submit(REPOSITORY, f'overrides="{text}"')

    def submit(self, app: Path, run_config: str) -> str:
        """Submit a run of ``app`` and return its id."""
        return str(self.flwr_json("run", str(app), "--run-config", run_config)["run-id"])

    def status(self, run: str) -> str:
        return next(
            str(item["status"])
            for item in self.flwr_json("list")["runs"]
            if str(item["run-id"]) == run
        )

    def finish(self, run: str, timeout_s: float = LONG_S) -> str:
        """Wait until the run has ended and return how."""
        wait_until(lambda: self.processes("flwr-serverapp"), "ServerApp", timeout_s, self.logs)
        wait_until(
            lambda: not self.processes("flwr-serverapp"), f"end of run {run}", timeout_s, self.logs
        )
        wait_until(
            lambda: self.status(run).startswith("finished"),
            f"status of run {run}",
            timeout_s,
            self.logs,
        )
        return self.status(run)

    def processes(self, name: str) -> list[int]:
        """Return the process ids of this deployment whose command line contains ``name``."""
        return [pid for pid, command in marked_processes(self.mark) if name in command]

    def logs(self) -> str:
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}"
            for log in sorted(self.folder.glob("*.log"))
        )

    def end(self) -> None:
        """End every process that carries the mark: politely, then by force."""
        for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for pid, _ in marked_processes(self.mark):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + patience_s
            while any(marked_processes(self.mark)) and time.monotonic() < deadline:
                time.sleep(0.1)


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
def site_network(deployment: Deployment) -> Iterator[Line]:
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


TLS_FILES = (("ca-cert", "ca.crt"), ("cert", "server.crt"), ("key", "server.key"))


def write_site(tones: Path, folder: Path, speakers: list[str]) -> Path:
    """Copy the speakers' audio to ``folder``, beside a manifest with made-up labels; return the manifest."""
    rows = ["path,speaker,num_samples,sample_rate,ids"]
    for speaker in speakers:
        shutil.copytree(tones / speaker, folder / speaker)
        for path in sorted((folder / speaker).glob("*.wav")):
            info = soundfile.info(path)
            frames = (-(-info.frames * 16000 // info.samplerate) - 400) // 320 + 1
            ids = " ".join(str((number // 5 + len(rows) % 4) % 8) for number in range(frames))
            rows.append(f"{speaker}/{path.name},{speaker},{info.frames},{info.samplerate},{ids}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


@pytest.fixture(scope="session")
def deployment(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink with three registered SuperNodes that are online; site i holds speaker i's audio and nothing else."""
    deployed = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        for number in range(NODES):
            write_site(tone_folder, deployed.folder / f"site-{number}", [f"speaker{number}"])
        deployed.start_superlink()
        for number in range(NODES):
            deployed.register(number)
        deployed.node = {number: deployed.start_node(number) for number in range(NODES)}
        for node in deployed.node.values():
            node.wait_for("SuperNode ID:")
        yield deployed
    finally:
        deployed.end()


@pytest.fixture(scope="session")
def simulated(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder of the same training in simulation, over all sites' audio in one manifest."""
    folder = tmp_path_factory.mktemp("simulated")
    manifest = write_site(
        tone_folder, folder / "audio", [f"speaker{number}" for number in range(NODES)]
    )
    command = [
        sys.executable,
        "-m",
        "fedhubert.cli",
        "train",
        *SMALL,
        f"data.manifest={manifest}",
        f"out={folder / 'run'}",
    ]
    environment = {**os.environ, "FEDHUBERT_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "run"
