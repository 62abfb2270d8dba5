"""Sites with keys and a roster of their own, and a network between that changes what it likes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Message

from fedhubert.compose import compose
from fedhubert.federation.secure.roster import Roster, write_roster
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.wire.arrays import HeldArray
from tests.conftest import write_tones
from tests.federation.in_process import InProcessGrid, open_policy
from tests.integration.conftest import SMALL

Node = dict[str, str | int]
Tamper = Callable[[int, Message], None]
SITES = 5
SETTINGS = [
    *("federated.num_clients=5", "federated.num_rounds=1", "client.local_steps=1"),
    *("targets.max_iterations=1", "data.partition.kind=random"),
]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tones with a manifest for each of five sites."""
    folder = tmp_path_factory.mktemp("audio")
    write_tones(folder)
    lines = ["path,speaker,num_samples,sample_rate"]
    import soundfile

    for path in sorted(folder.rglob("*.wav")):
        about = soundfile.info(path)
        lines.append(f"{path.relative_to(folder)},anyone,{about.frames},{about.samplerate}")
    for number in range(SITES):
        own = [lines[0], *lines[1 + number : 9 + number]]
        (folder / f"site-{number}.csv").write_text("\n".join(own) + "\n")
    return folder


@dataclass
class Sites:
    """Five sites with data and long-term keys of their own, one roster, and what comes between them and the server."""

    folder: Path
    audio: Path
    on_request: Tamper = lambda node, message: None
    on_reply: Tamper = lambda node, message: None
    grid: InProcessGrid | None = None
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        keys = [Ed25519PrivateKey.generate() for _ in range(SITES)]
        public = {n: key.public_key().public_bytes_raw() for n, key in enumerate(keys)}
        write_roster(self.folder / "roster.json", Roster("clinics", 3, public))
        for number, key in enumerate(keys):
            file = self.folder / f"site-{number}.key"
            file.touch(mode=0o600)
            file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            self.nodes.append(
                {
                    "partition-id": number,
                    "num-partitions": SITES,
                    "manifest": str(self.audio / f"site-{number}.csv"),
                    "state-dir": str(self.folder / f"state-{number}"),
                    "policy": open_policy(self.folder),
                    "device": "cpu",
                    "site-key": str(file),
                    "roster": str(self.folder / "roster.json"),
                }
            )

    def run(self, name: str, *overrides: str) -> RunResult:
        config = compose(
            ["experiment=demo_fedavg", *SMALL, *SETTINGS, f"out={self.folder / name}", *overrides]
        )
        sites = self

        class Between(InProcessGrid):
            def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
                ids = []
                for message in messages:
                    node = message.metadata.dst_node_id - 100
                    sites.on_request(node, message)
                    for name in super().push_messages([message]):
                        if name in self.replies:
                            sites.on_reply(node, self.replies[name])
                        ids.append(name)
                return ids

        self.grid = Between(self.nodes)
        return run_federation(self.grid, config)

    def secure(self, *overrides: str, name: str = "secure") -> RunResult:
        roster = f"secure.roster={self.folder / 'roster.json'}"
        return self.run(name, "secure=pairwise", roster, *overrides)


@pytest.fixture()
def sites(audio: Path, tmp_path: Path) -> Sites:
    return Sites(tmp_path, audio)


def change(message: Message, name: str, how: Callable[[Any], Any]) -> None:
    """Change an array of a message on its way."""
    record = message.content.array_records.get("arrays") if message.has_content() else None
    if record is not None and name in record:
        record[name] = HeldArray(how(record[name].numpy().copy()))


def of_kind(message: Message, kind: str) -> bool:
    return message.metadata.message_type.startswith(kind)
