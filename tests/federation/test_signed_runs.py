"""Whole runs with signed messages, and settings of keys that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.deployment.keys import read_signing_key
from fedhubert.errors import ConfigError, FedhubertError
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.site.answering import answer, site_context
from fedhubert.federation.site.identity import seal_of
from fedhubert.federation.wire import arrays, protocol, reading, signing
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.federation.wire.messages.message import Failure, Instruction
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.training.parameters import ParameterLayout
from tests.federation.signed_messages import HOUR_S, signed
from tests.flower import said_by

from .clients import SMALL
from .signed import NODES, Keys, SignedGrid


def run_settings(tone_folder: Path, folder: Path) -> list[str]:
    manifest = folder / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    data = [
        f"data.manifest={manifest}",
        f"data.root={tone_folder}",
        "federated.connect_timeout_s=0.5",
    ]
    return [
        "experiment=demo_fedavg",
        *SMALL,
        *data,
        "federated.num_rounds=2",
        "client.local_steps=1",
        "data.num_workers=0",
    ]


def with_keys(keys: Keys) -> list[str]:
    return [f"federated.node_keys={keys.enrolled}", f"federated.signing_key={keys.coordinator}"]


def model_of(out: Path) -> dict[str, Any]:
    return dict(load_checkpoint(out / "checkpoints/round_002_checkpoint.pt")["model"])


def test_a_signed_run_has_the_bits_of_an_unsigned_one_and_hashes_the_model_once_a_round(
    keys: Keys, tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = run_settings(tone_folder, tmp_path)
    plain = SignedGrid(keys, tmp_path / "plain")
    for config in plain.configs.values():
        del config["coordinator-key"], config["site-key"]
    run_federation(plain, compose([*overrides, f"out={tmp_path / 'a'}"]))
    assert not any("signature" in message.content for message in (*plain.requests, *plain.answers))

    hashed: list[int] = []
    real = arrays.sha256_of_ndarray
    monkeypatch.setattr(
        arrays, "sha256_of_ndarray", lambda values: hashed.append(values.size) or real(values)
    )
    grid = SignedGrid(keys, tmp_path / "signed")
    run_federation(grid, compose([*overrides, *with_keys(keys), f"out={tmp_path / 'b'}"]))
    ours, theirs = model_of(tmp_path / "a"), model_of(tmp_path / "b")
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert all("signature" in message.content for message in (*grid.requests, *grid.answers))
    size = grid.requests[-1].content.array_records["arrays"]["model"].numpy().size
    # by the coordinator three broadcasts (two rounds, final evaluation), and the updates by their sites
    assert hashed.count(size) == 3 + 2 * NODES


def test_fewer_nodes_with_keys_than_clients_train_them_all(
    keys: Keys, tone_folder: Path, tmp_path: Path
) -> None:
    """On a cluster a node trains several clients of the run's manifest; it does so by its own key, and no node that says there are fewer."""
    clients = ["federated.num_clients=5", "data.partition.kind=random"]
    overrides = [*run_settings(tone_folder, tmp_path), *clients]
    plain = SignedGrid(keys, tmp_path / "plain")
    for config in plain.configs.values():
        del config["coordinator-key"], config["site-key"]
    run_federation(plain, compose([*overrides, f"out={tmp_path / 'a'}"]))
    grid = SignedGrid(keys, tmp_path / "signed")
    run_federation(grid, compose([*overrides, *with_keys(keys), f"out={tmp_path / 'b'}"]))
    ours, theirs = model_of(tmp_path / "a"), model_of(tmp_path / "b")
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert all("signature" in message.content for message in (*grid.requests, *grid.answers))

    lying = SignedGrid(keys, tmp_path / "lying")
    lying.configs[100]["num-partitions"] = 1
    with pytest.raises(FedhubertError, match="site 0 says that there are 1 nodes"):
        run_federation(lying, compose([*overrides, *with_keys(keys), f"out={tmp_path / 'c'}"]))


def test_a_registered_site_cannot_instruct_another(
    keys: Keys, tone_folder: Path, tmp_path: Path
) -> None:
    """It signs with the key that it has, or not at all, or sends on what it was sent: the other does nothing of it."""
    overrides = run_settings(tone_folder, tmp_path)
    grid = SignedGrid(keys, tmp_path / "state")
    connect(federation(overrides, keys, grid))
    own = next(message for message in grid.requests if message.metadata.dst_node_id == 102)
    job = str(own.content.config_records["request"]["job"])

    def to_site_1(instruction: Instruction) -> Message:
        return protocol.request(
            101, instruction, job_json=job, run_key="run", group="0", ttl_s=60.0
        )

    by_itself = to_site_1(Describe(partitions=(1,)))
    signing.sign_request(by_itself, 1, HOUR_S, read_signing_key(keys.site(2), setting="x"))
    sent_on = Message(own.content, 101, own.metadata.message_type, group_id=own.metadata.group_id)
    recorded = next(message for message in grid.requests if message.metadata.dst_node_id == 101)
    cases = [
        (to_site_1(Describe(partitions=(1,))), "not_signed"),
        (by_itself, "signature"),
        (sent_on, "signature"),
        (recorded, "replayed"),
    ]
    for message, code in cases:
        reply = answer(message, site_context(grid.configs[101]))
        assert [failure.code for failure in reading.read_reply(reply, Description).failures] == [
            code
        ]
        assert "metrics" not in reply.content and "arrays" not in reply.content


def federation(overrides: list[str], keys: Keys, grid: SignedGrid) -> Federation:
    config = compose([*overrides, *with_keys(keys)])
    return Federation(
        StreamingGrid(grid),
        config,
        "run",
        ParameterLayout.of(build_hubert(config.model, config.seed)),
    )


def test_a_site_cannot_answer_for_another_in_a_run(
    keys: Keys, tone_folder: Path, tmp_path: Path
) -> None:
    """In the rounds site 2's replies are given in site 0's name; the run goes on without site 0, and the liar's are not in its model."""
    overrides = [
        *run_settings(tone_folder, tmp_path),
        "federated.min_clients=2",
        "federated.round_retries=0",
    ]
    grid = SignedGrid(keys, tmp_path / "state")

    def in_the_name_of_site_0(node: int, reply: Message) -> Message:
        if node != 100 or reply.metadata.message_type != "train.round":
            return reply
        content = RecordDict(
            {name: record for name, record in reply.content.items() if name != "signature"}
        )
        forged = Message(content, reply_to=grid.requests[-1])
        return said_by(100, seal_of(keys.site(2), 0)(grid.requests[-1], forged))

    grid.on_reply = in_the_name_of_site_0
    out = tmp_path / "out"
    (keys.folder / "server.crt").write_bytes(
        b"of no use, which is said when a run begins, and stops none"
    )
    run_federation(
        grid, compose([*overrides, *with_keys(keys), "federated.client_fraction=1.0", f"out={out}"])
    )
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    assert len(rounds) == 2
    assert "server.crt: cannot say when it runs out" in (out / "federated_training.log").read_text()
    for event in rounds:
        assert [client["partition"] for client in event["clients"]] == [1, 2]
        assert [(failure["partition"], failure["code"]) for failure in event["failed"]] == [
            (0, "signature")
        ]


def test_a_site_that_names_a_key_enforces_it_or_answers_nothing(keys: Keys, tmp_path: Path) -> None:
    grid = SignedGrid(
        keys,
        tmp_path,
        node_configs=[{"partition-id": 1, "num-partitions": NODES, "coordinator-key": "/no/such"}],
    )
    (name,) = grid.push_messages([signed(keys, Describe(), node=0)])
    assert reading.read_reply(grid.replies[name], Description).failures == (
        Failure(-1, "config", "coordinator-key"),
    )
    with pytest.raises(ConfigError, match="chmod 600"):
        open_key = tmp_path / "open.key"
        open_key.write_bytes(keys.site(1).read_bytes())
        open_key.chmod(0o640)
        seal_of(open_key, 1)
    with pytest.raises(ConfigError, match="partition-id"):
        site_context({"coordinator-key": str(keys.pinned)})


def test_settings_that_do_not_fit_are_named(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="signing_key needs node_keys"):
        compose(["federated.signing_key=coordinator.key"])
    (keys.enrolled / "site-2.pub").rename(tmp_path / "kept")
    try:
        with pytest.raises(ConfigError, match=r"no site-2.pub there"):
            federation(["experiment=demo_fedavg", *SMALL], keys, SignedGrid(keys, tmp_path))
    finally:
        (tmp_path / "kept").rename(keys.enrolled / "site-2.pub")
    with pytest.raises(ConfigError, match="is not an Ed25519 private key"):
        compose_and_connect = [*with_keys(keys)[:1], f"federated.signing_key={keys.pinned}"]
        keys.pinned.chmod(0o600)
        config = compose(["experiment=demo_fedavg", *SMALL, *compose_and_connect])
        Federation(
            StreamingGrid(SignedGrid(keys, tmp_path)),
            config,
            "run",
            ParameterLayout.of(build_hubert(config.model, 0)),
        )
