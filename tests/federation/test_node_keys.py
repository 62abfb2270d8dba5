"""Which node may train which client, by the keys that ``fedhubert certs`` writes."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.errors import ConfigError, FederationError
from fedhubert.federation.roster.connect import connect, refresh
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.models.hubert import build_hubert
from fedhubert.training.parameters import ParameterLayout
from tests.flower import identify, key_bytes, node_info

from .clients import SMALL
from .in_process import InProcessGrid

NODES = 3


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs")
    assert main(["certs", "--out", str(out), "--host", "localhost", "--nodes", str(NODES + 1)]) == 0
    (out / f"node-{NODES}.pub").unlink()  # a key that the server does not know
    return out


@pytest.fixture
def overrides(tone_folder: Path, keys: Path, tmp_path: Path) -> list[str]:
    identify()
    assert (
        main(
            ["prepare", "folder", "--root", str(tone_folder), "--out", str(tmp_path / "tones.csv")]
        )
        == 0
    )
    data = [
        f"data.manifest={tmp_path / 'tones.csv'}",
        f"data.root={tone_folder}",
        "data.min_seconds=0.5",
    ]
    return [
        *SMALL,
        *data,
        f"federated.num_clients={NODES}",
        f"federated.node_keys={keys}",
        "federated.connect_timeout_s=0.5",
    ]


class KeyedGrid(InProcessGrid):
    """Nodes as the SuperLink would report them: (the number that a node claims, the number of the private key that it holds)."""

    def __init__(self, keys: Path, nodes: list[tuple[int, int]], state: Path) -> None:
        super().__init__(
            [
                {
                    "partition-id": claimed,
                    "num-partitions": NODES,
                    "state-dir": str(state / str(claimed)),
                }
                for claimed, _ in nodes
            ]
        )
        self.activated = dict.fromkeys(self.configs, "2026-01-01T00:00:00")
        self.held = {
            node: public_key(keys / f"node-{held}.key")
            for node, (_, held) in zip(self.configs, nodes, strict=True)
        }

    def get_nodes(self) -> Iterable[Any]:
        return [
            node_info(node, self.held[node], self.activated[node]) for node in self.get_node_ids()
        ]


def public_key(path: Path) -> bytes:
    key = load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return key_bytes(key.public_key())


def federation(overrides: list[str], grid: InProcessGrid) -> Federation:
    config = compose(overrides)
    return Federation(
        StreamingGrid(grid),
        config,
        "run",
        ParameterLayout.of(build_hubert(config.model, config.seed)),
    )


def test_nodes_with_their_own_keys_make_the_federation(
    overrides: list[str], keys: Path, tmp_path: Path
) -> None:
    made = federation(overrides, KeyedGrid(keys, [(2, 2), (0, 0), (1, 1)], tmp_path))
    connect(made)
    assert made.hosts == {101: [0], 102: [1], 100: [2]}


@pytest.mark.parametrize("impostor", [(0, 1), (1, NODES)], ids=["registered", "unknown"])
def test_who_claims_another_number_is_left_out(
    impostor: tuple[int, int],
    overrides: list[str],
    keys: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = KeyedGrid(keys, [impostor, (0, 0), (2, 2)], tmp_path)
    with pytest.raises(
        FederationError,
        match=r"2 of 3 nodes connected.*\(1 others have no key of federated.node_keys",
    ):
        connect(federation(overrides, grid))
    made = federation([*overrides, "federated.min_clients=2"], grid)
    with caplog.at_level(logging.WARNING, "fedhubert"):
        connect(made)
    assert made.hosts == {101: [0], 102: [2]}
    assert ("it says that it is node 0, and has the key of node 1" in caplog.text) == (
        impostor == (0, 1)
    )
    refresh(made)
    assert made.hosts == {101: [0], 102: [2]}


def test_an_impostor_that_comes_later_is_left_out(
    overrides: list[str], keys: Path, tmp_path: Path
) -> None:
    grid = KeyedGrid(keys, [(0, 0), (1, 1), (2, 2)], tmp_path)
    late = grid.configs.pop(102)
    made = federation([*overrides, "federated.min_clients=2"], grid)
    connect(made)
    right, grid.held[102] = grid.held[102], grid.held[101]
    grid.configs[102] = late
    refresh(made)
    assert made.hosts == {100: [0], 101: [1]}
    grid.held[102] = right
    refresh(made)
    assert made.hosts == {100: [0], 101: [1]}  # it is asked a minute later, or
    grid.activated[102] = "2026-01-01T00:01:00"  # when it was started anew
    refresh(made)
    assert made.hosts == {100: [0], 101: [1], 102: [2]}


def test_a_node_that_is_started_anew_is_asked_at_once_and_one_that_always_is_waits(
    overrides: list[str], keys: Path, tmp_path: Path
) -> None:
    grid = KeyedGrid(keys, [(0, 0), (1, 1), (2, 2)], tmp_path)
    made = federation(overrides, grid)
    connect(made)
    refresh(made)
    asked = []
    for second in range(10):
        # killed and started anew in the round that waits for it
        grid.activated[102] = f"2026-01-01T00:02:{second:02}"
        made.set_aside([102])
        asked.append(made.newcomers())
        assert made.newcomers() == asked[-1]
        made.hosts[102] = [2]
    assert asked == [[102]] * 3 + [[]] * 7


def test_a_folder_without_usable_keys_is_named(
    overrides: list[str], keys: Path, tmp_path: Path
) -> None:
    grid, folder = InProcessGrid([]), tmp_path / "keys"
    folder.mkdir()
    settings = [*overrides, f"federated.node_keys={folder}"]
    with pytest.raises(ConfigError, match=r"no node-0.pub"):
        federation(settings, grid)
    (folder / "node-0.pub").write_text("ssh-rsa nonsense")
    with pytest.raises(ConfigError, match=r"node-0.pub is not a public key"):
        federation(settings, grid)
    for name in ("node-0.pub", "node-1.pub"):
        (folder / name).write_bytes((keys / "node-0.pub").read_bytes())
    with pytest.raises(ConfigError, match=r"node-1.pub is the key of node 0, too"):
        federation(settings, grid)
