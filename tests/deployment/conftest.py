"""A federation of real processes on this host's loopback: one SuperLink, three SuperNodes, TLS, node authentication.

Every process carries a mark in its environment, by which all of them (also those that Flower starts and detaches) are found and ended.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from fedhubert.cli import main
from tests.federation.in_process import open_policy

from .line import LINE_HOST
from .processes import LONG_S, MARK, Running, free_port, marked_processes, wait_until

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NODES = 3
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
        self,
        number: int,
        *options: str,
        superlink: str = "127.0.0.1",
        device: str = "auto",
        **how: Any,
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
        where += [f"--policy={open_policy(self.folder)}", f"--device={device}"]
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
