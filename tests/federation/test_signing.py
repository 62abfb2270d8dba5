"""A site obeys the coordinator whose key it pinned and nobody else, and speaks for itself alone."""

import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.deployment.keys import read_signing_key, read_verify_key
from fedhubert.errors import ConfigError, FedhubertError
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.correspondence import Correspondence
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.site.answering import answer, site_context
from fedhubert.federation.site.identity import SignedRequests, admission_of, seal_of
from fedhubert.federation.site.request_ledger import RequestLedger
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import arrays, protocol, reading, signing
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.federation.wire.messages.message import Failure, Instruction
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.federation.wire.messages.rounds import Train, Trained
from fedhubert.federation.wire.messages.targets import Label, StepKMeans
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.training.parameters import ParameterLayout
from tests.flower import deflated, identify, inflated, said_by
from tests.test_fuzz import budget, changed, check, disturb

from .signed import NODES, Keys, SignedGrid, make_keys
from .test_equivalences import SMALL

JOB = client_job(compose(["experiment=demo", *SMALL])).model_dump_json()
TRAIN = Train(
    round=3,
    attempt=1,
    partitions=(1,),
    positions={1: 4},
    layout="abc",
    arrays={"model": np.arange(6, dtype=np.float32)},
)
HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def app_identity() -> None:
    """Flower sets this when it starts an app."""
    identify()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


def unsigned(instruction: Instruction = TRAIN, node_id: int = 101) -> Message:
    return protocol.request(
        node_id, instruction, job_json=JOB, run_key="run", group="3", ttl_s=60.0
    )


def signed(
    keys: Keys,
    instruction: Instruction = TRAIN,
    *,
    node: int = 1,
    by: str = "coordinator",
    life_s: float = HOUR_S,
) -> Message:
    message = unsigned(instruction, 100 + node)
    signing.sign_request(
        message, node, life_s, read_signing_key(keys.folder / f"{by}.key", setting="x")
    )
    return message


def arrived(message: Message) -> Message:
    """What comes of a message's content on its way over a wire."""
    content = inflated(message.content.object_id, deflated(message.content))
    return with_content(message, content)


def with_content(message: Message, content: RecordDict, kind: str = "", group: str = "") -> Message:
    about = message.metadata
    return Message(
        content, about.dst_node_id, kind or about.message_type, group_id=group or about.group_id
    )


def site(keys: Keys, state: Path, number: int = 1) -> SignedRequests:
    return admission_of(keys.pinned, number, state)


def refusal(admission: SignedRequests, message: Message) -> str:
    """Return the code with which a site refuses a message, "" where it does not."""
    try:
        admission(message, reading.read_request(message))
    except FedhubertError as error:
        return error.code
    return ""


# ---------------------------------------------------------------- requests


def test_what_the_coordinator_signed_is_answered_also_after_a_wire(
    keys: Keys, tmp_path: Path
) -> None:
    admission = site(keys, tmp_path)
    assert refusal(admission, signed(keys)) == ""
    assert refusal(admission, arrived(signed(keys))) == ""
    for instruction in (
        Describe(partitions=(1,)),
        StepKMeans(arrays={"centroids": np.ones((3, 2), np.float32)}),
        Label(targets="t"),
    ):
        assert refusal(admission, arrived(signed(keys, instruction))) == ""


def test_an_array_is_the_same_however_it_lies_in_memory(keys: Keys, tmp_path: Path) -> None:
    columns = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert (
        refusal(
            site(keys, tmp_path), arrived(signed(keys, StepKMeans(arrays={"centroids": columns})))
        )
        == ""
    )
    assert arrays.sha256_of_ndarray(columns) == arrays.sha256_of_ndarray(
        np.ascontiguousarray(columns)
    )


@pytest.mark.parametrize("by", ["stranger", "site-0", "site-1"])
def test_another_keys_signature_is_refused(keys: Keys, tmp_path: Path, by: str) -> None:
    assert refusal(site(keys, tmp_path), signed(keys, by=by)) == "signature"


def test_what_nobody_signed_is_refused(keys: Keys, tmp_path: Path) -> None:
    admission, key = site(keys, tmp_path), None
    assert refusal(admission, unsigned()) == "not_signed"
    message = unsigned()
    signing.sign_request(
        message, 1, HOUR_S, key
    )  # a server that knows the sites' keys and has none
    assert refusal(admission, message) == "not_signed"
    message.content["signature"] = ConfigRecord({"signature": b"\0" * 64, "digest": "0" * 64})
    assert refusal(admission, message) == "signature"


def test_another_sites_request_is_refused(keys: Keys, tmp_path: Path) -> None:
    assert refusal(site(keys, tmp_path, 1), signed(keys, node=0)) == "signature"


def fields(**changes: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        record = content.config_records["request"]
        record["task"] = json.dumps({**json.loads(str(record["task"])), **changes})

    return change


def entry(record: str, name: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.config_records[record][name] = value

    return change


def array(name: str, values: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        record = ArrayRecord(
            {key: Array(held.numpy()) for key, held in content.array_records["arrays"].items()}
        )
        record[name] = Array(values)
        content["arrays"] = record

    return change


ALTERED: dict[str, Callable[[RecordDict], Any]] = {
    "job": lambda content: entry("request", "job", JOB.replace('"threads":', '"threads": '))(
        content
    ),
    "another job": lambda content: entry(
        "request",
        "job",
        client_job(compose(["experiment=demo", *SMALL, "client.local_steps=7"])).model_dump_json(),
    )(content),
    "round": fields(round=4),
    "attempt": fields(attempt=2),
    "positions": fields(positions={1: 5}),
    "partitions": fields(partitions=[2]),
    "clip norm": fields(clip_norm=1e9),
    "run": entry("request", "run", "other"),
    "version of nothing": entry("request", "more", 1),
    "one value": array("model", np.array([0, 1, 2, 3, 4, 6], np.float32)),
    "another shape": array("model", np.arange(5, dtype=np.float32)),
    "another type": array("model", np.arange(6, dtype=np.float32).view(np.int16)),
    "a record more": lambda content: content.__setitem__("more", ConfigRecord({"x": 1})),
    "arrays more": lambda content: content.__setitem__(
        "more", ArrayRecord({"x": Array(np.ones(1))})
    ),
    "expiry": entry("signature", "expires", 2**39),
    "issue": entry("signature", "issued", 1),
    "id": entry("signature", "id", "0" * 32),
    "node": entry("signature", "node", 0),
    "digest": entry("signature", "digest", "0" * 64),
    "an entry more": entry("signature", "more", "x"),
    "a signature of a byte more": lambda content: entry(
        "signature",
        "signature",
        bytes(content.config_records["signature"]["signature"]) + b"x",  # type: ignore[arg-type]
    )(content),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_request_that_was_altered_is_refused(keys: Keys, tmp_path: Path, name: str) -> None:
    message = arrived(signed(keys))
    ALTERED[name](message.content)
    admission = site(keys, tmp_path)
    assert refusal(admission, message) == "signature"
    assert not admission.ledger.path.exists()


def test_an_array_that_is_left_out_is_missed(keys: Keys, tmp_path: Path) -> None:
    message = arrived(
        signed(keys, Label(targets="t", arrays={"centroids": np.ones((3, 2), np.float32)}))
    )
    del message.content["arrays"]
    assert refusal(site(keys, tmp_path), message) == "signature"


@pytest.mark.parametrize(("kind", "group"), [("evaluate.model", "3"), ("train.round", "4")])
def test_a_request_of_another_kind_or_group_is_refused(
    keys: Keys, tmp_path: Path, kind: str, group: str
) -> None:
    message = signed(keys, Describe())
    message = with_content(
        message,
        message.content,
        "query.describe" if kind == "train.round" else "train.label",
        group,
    )
    if kind != "train.round":
        message.content["request"]["task"] = '{"targets": "t"}'  # type: ignore[index]
    assert refusal(site(keys, tmp_path), message) == "signature"


def test_arrays_of_two_requests_cannot_be_swapped(keys: Keys, tmp_path: Path) -> None:
    other = TRAIN.model_copy(update={"arrays": {"model": np.zeros(6, np.float32)}})
    first, second = arrived(signed(keys)), arrived(signed(keys, other))
    first.content["arrays"], second.content["arrays"] = (
        second.content["arrays"],
        first.content["arrays"],
    )
    assert [refusal(site(keys, tmp_path), message) for message in (first, second)] == [
        "signature"
    ] * 2
    first, second = arrived(signed(keys)), arrived(signed(keys, other))
    first.content["signature"], second.content["signature"] = (
        second.content["signature"],
        first.content["signature"],
    )
    assert [refusal(site(keys, tmp_path), message) for message in (first, second)] == [
        "signature"
    ] * 2


@pytest.mark.parametrize(
    ("after_s", "code"),
    [
        (-signing.CLOCK_SKEW_S - 5, "expired"),
        (-signing.CLOCK_SKEW_S + 5, ""),
        (HOUR_S + signing.CLOCK_SKEW_S - 5, ""),
        (HOUR_S + signing.CLOCK_SKEW_S + 5, "expired"),
    ],
)
def test_a_request_holds_for_its_time(
    keys: Keys, tmp_path: Path, after_s: float, code: str
) -> None:
    message, now_s = signed(keys), time.time()
    assert refusal(replace(site(keys, tmp_path), clock=lambda: now_s + after_s), message) == code


# ---------------------------------------------------------------- none twice


def test_nothing_is_answered_twice_also_by_a_site_that_was_started_anew(
    keys: Keys, tmp_path: Path
) -> None:
    message = signed(keys)
    assert refusal(site(keys, tmp_path), message) == ""
    assert refusal(site(keys, tmp_path), message) == "replayed"
    assert refusal(site(keys, tmp_path), arrived(message)) == "replayed"
    assert refusal(site(keys, tmp_path), signed(keys)) == ""  # the same words, asked again


def test_the_ledger_is_private_and_on_the_disk_before_the_answer(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    admission = site(keys, tmp_path / "state")
    path = admission.ledger.path
    real = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (real(fd), synced.append(path.read_bytes() if path.exists() else b"")),
    )
    message = signed(keys)
    assert refusal(admission, message) == ""
    number = str(message.content.config_records["signature"]["id"])
    assert number in synced[-1].decode() and path.read_bytes() == synced[-1]
    assert (
        stat.S_IMODE(path.stat().st_mode) == 0o600
        and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    )


def test_a_ledger_that_cannot_be_written_means_no_answer(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(site(keys, tmp_path / "file"), signed(keys)) == "ledger"
    link = tmp_path / "state/requests-1.ledger"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    assert (
        refusal(site(keys, tmp_path / "state"), signed(keys)) == "ledger"
        and not (tmp_path / "elsewhere").exists()
    )
    link.unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    message = signed(keys)
    monkeypatch.setattr(os, "fsync", full)
    assert refusal(site(keys, tmp_path / "state"), message) == "ledger"


def test_a_line_that_a_crash_cut_short_goes_and_a_damaged_ledger_stops_the_site(
    keys: Keys, tmp_path: Path
) -> None:
    message = signed(keys)
    admission = site(keys, tmp_path)
    assert refusal(admission, message) == ""
    path, whole = admission.ledger.path, admission.ledger.path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert refusal(admission, message) == "replayed" and path.read_bytes() == whole
    path.write_bytes(b"\0" * 20 + b"\n" + whole)
    assert refusal(admission, signed(keys)) == "ledger"


def test_the_ledger_forgets_only_what_would_be_refused_as_expired(tmp_path: Path) -> None:
    ledger, start = RequestLedger(tmp_path / "ledger"), 1_000_000

    def envelope(number: int, expires: int) -> signing.Envelope:
        return signing.Envelope(1, f"{number:032x}", expires - 10, expires)

    for number in range(300):
        ledger.enter(envelope(number, start + number), start)
    assert len(ledger.path.read_bytes().splitlines()) == 300
    later = start + 200 + signing.CLOCK_SKEW_S
    ledger.enter(envelope(300, later + 10), later)
    assert len(ledger.path.read_bytes().splitlines()) == 102  # and one that says where it begins
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    for number in range(301):  # whatever the clock says now
        with pytest.raises(FedhubertError) as refused:
            ledger.enter(envelope(number, later + 10 if number == 300 else start + number), start)
        assert refused.value.code == ("expired" if number < 200 else "replayed")


def test_two_processes_of_a_site_do_not_answer_one_request_both(keys: Keys, tmp_path: Path) -> None:
    import threading

    ledger, envelope = RequestLedger(tmp_path / "ledger"), signing.Envelope(1, "a" * 32, 0, 2**39)
    codes: list[str] = []

    def enter() -> None:
        try:
            ledger.enter(envelope, 1000.0)
            codes.append("")
        except FedhubertError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["", *["replayed"] * 7]


# ---------------------------------------------------------------- replies


def correspondence(keys: Keys) -> Correspondence:
    reply_keys = {
        number: read_verify_key(keys.enrolled / f"site-{number}.pub", setting="x")
        for number in range(NODES)
    }
    return Correspondence(read_signing_key(keys.coordinator, setting="x"), reply_keys)


def trained(value: float = 1.0) -> Trained:
    row = {
        "weight": 10,
        "update_norm": 1.0,
        "train_micro_batches": 4,
        "train_steps": 4,
        "train_audio_s": 1.0,
    }
    return Trained(
        round=3, layout="abc", metrics={1: row}, arrays={"update": np.full(6, value, np.float32)}
    )


def reply_of(
    keys: Keys,
    request: Message,
    signer: int = 1,
    node_id: int = 101,
    by: str = "",
    answer: Trained | None = None,
) -> Message:
    reply = protocol.reply(request, answer or trained())
    seal = seal_of(keys.folder / f"{by or f'site-{signer}'}.key", signer)
    return said_by(node_id, seal(request, reply))


def asked(keys: Keys) -> tuple[Correspondence, Message]:
    said, message = correspondence(keys), unsigned()
    said.sign(message, 1, HOUR_S)
    return said, message


def verdict(said: Correspondence, reply: Message) -> str:
    read = said.read(reply, Trained)
    assert (read.answer is None) == bool(read.failures)
    return ",".join(failure.code for failure in read.failures)


def test_a_sites_own_reply_counts_once(keys: Keys) -> None:
    said, request = asked(keys)
    reply = reply_of(keys, request)
    reply = said_by(
        101, with_reply_content(request, inflated(reply.content.object_id, deflated(reply.content)))
    )
    assert verdict(said, reply) == "" and verdict(said, reply) == "signature"


def with_reply_content(request: Message, content: RecordDict) -> Message:
    return Message(content, reply_to=request)


def test_a_reply_in_another_sites_name_is_refused(keys: Keys) -> None:
    said, request = asked(keys)
    assert (
        verdict(said, reply_of(keys, request, signer=2)) == "signature"
    )  # site 2 answers for site 1, as itself
    assert (
        verdict(said, reply_of(keys, request, by="site-2")) == "signature"
    )  # and in its name, by its own key
    assert verdict(said, reply_of(keys, request, by="stranger")) == "signature"
    assert (
        verdict(said, said_by(101, protocol.reply(request, trained()))) == "signature"
    )  # unsigned
    assert (
        verdict(said, reply_of(keys, request, node_id=102)) == "signature"
    )  # of a node that was not asked
    assert verdict(said, reply_of(keys, request)) == ""  # the true one still counts


def test_a_reply_to_another_request_is_refused(keys: Keys) -> None:
    said, request = asked(keys)
    early = reply_of(keys, request)
    again = unsigned()
    said.sign(again, 1, HOUR_S)  # the same words, asked again
    assert verdict(said, early) == "signature"
    assert verdict(said, reply_of(keys, again)) == ""


def test_failures_are_believed_of_the_site_alone(keys: Keys) -> None:
    said, request = asked(keys)
    failed = protocol.reply(request, None, [Failure(1, "state_missing")], node=1)
    assert said.read(said_by(101, failed), Trained).failures == (
        Failure(-1, "signature", "federated.node_keys"),
    )
    sealed = seal_of(keys.site(1), 1)(request, failed)
    assert said.read(said_by(101, sealed), Trained).failures == (Failure(1, "state_missing"),)


REPLY_ALTERED: dict[str, Callable[[RecordDict], Any]] = {
    "weight": lambda content: content.metric_records["metrics"].__setitem__("weight", [11]),
    "a whole number for a real one": lambda content: content.metric_records["metrics"].__setitem__(
        "update_norm", [1]
    ),
    "update": array("update", np.full(6, 2.0, np.float32)),
    "round": entry("info", "round", 4),
    "a failure more": lambda content: content.__setitem__(
        "failures", ConfigRecord({"partition": [2], "code": ["x"], "setting": [""]})
    ),
    "request": entry("signature", "request", "0" * 64),
    "node": entry("signature", "node", 2),
    "an entry more": entry("signature", "more", 1),
}


@pytest.mark.parametrize("name", REPLY_ALTERED)
def test_a_reply_that_was_altered_is_refused(keys: Keys, name: str) -> None:
    said, request = asked(keys)
    reply = reply_of(keys, request)
    REPLY_ALTERED[name](reply.content)
    assert said.read(reply, Trained).failures[0].code == "signature"


def test_a_request_never_passes_for_a_reply(keys: Keys) -> None:
    """A coordinator's signature under what a site would say is none, whoever's key it was."""
    key = read_signing_key(keys.coordinator, setting="x")
    said = Correspondence(key, {1: key.public_key()})
    request = unsigned()
    said.sign(request, 1, HOUR_S)
    reply = protocol.reply(request, trained())
    about = dict(request.content.config_records["signature"])
    reply.content["signature"] = ConfigRecord(
        {"request": about["digest"], "node": 1, "signature": about["signature"]}
    )
    assert verdict(said, said_by(101, reply)) == "signature"


# ---------------------------------------------------------------- a federation


def run_settings(tone_folder: Path, folder: Path) -> list[str]:
    manifest = folder / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    data = [
        f"data.manifest={manifest}",
        f"data.root={tone_folder}",
        "federated.connect_timeout_s=0.5",
    ]
    return [
        "experiment=demo",
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
            federation(["experiment=demo", *SMALL], keys, SignedGrid(keys, tmp_path))
    finally:
        (tmp_path / "kept").rename(keys.enrolled / "site-2.pub")
    with pytest.raises(ConfigError, match="is not an Ed25519 private key"):
        compose_and_connect = [*with_keys(keys)[:1], f"federated.signing_key={keys.pinned}"]
        keys.pinned.chmod(0o600)
        config = compose(["experiment=demo", *SMALL, *compose_and_connect])
        Federation(
            StreamingGrid(SignedGrid(keys, tmp_path)),
            config,
            "run",
            ParameterLayout.of(build_hubert(config.model, 0)),
        )


# ---------------------------------------------------------------- fuzz


@budget(80, 4000)
def test_whatever_the_bytes_a_site_does_what_was_signed_or_nothing(
    keys: Keys, tmp_path: Path, examples: int
) -> None:
    admission = site(keys, tmp_path)

    def holds(draw: Any) -> None:
        message = arrived(signed(keys))
        before = signing._request_digest(
            message, ENVELOPE, described(message, reading.read_request(message).arrays)
        )
        disturb(draw, message.content)
        try:
            request = admission(message, reading.read_request(message))
        except FedhubertError as error:
            assert error.code in ("federation", "config", "not_signed", "signature")
            return
        assert (
            signing._request_digest(message, ENVELOPE, described(message, request.arrays)) == before
        )

    check(examples, st.data(), holds)


def described(message: Message, arrays: Any) -> signing.Described:
    return signing._read(message.content, arrays, signing._REQUEST_RECORDS)


ENVELOPE = signing.Envelope(1, "0" * 32, 0, 1)


@budget(80, 4000)
def test_whatever_the_bytes_a_server_takes_what_was_signed_or_nothing(
    keys: Keys, examples: int
) -> None:
    said, request = asked(keys)
    number = said._asked[101]

    def holds(draw: Any) -> None:
        said._asked[101] = number
        reply = reply_of(keys, request)
        reply = said_by(
            101,
            with_reply_content(request, inflated(reply.content.object_id, deflated(reply.content))),
        )
        whole = reading.read_reply(reply, Trained)
        disturb(draw, reply.content)
        read = said.read(reply, Trained)
        if read.answer is None:
            assert read.failures and read.failures[0].code in ("signature", "malformed")
        else:
            assert read.answer.model_dump() == whole.answer.model_dump() and read.failures == ()  # type: ignore[union-attr]
            assert (read.answer.arrays["update"] == 1.0).all()

    check(examples, st.data(), holds)


@budget(80, 4000)
def test_the_record_of_a_signature_may_be_anything(
    keys: Keys, tmp_path: Path, examples: int
) -> None:
    message = signed(keys)
    whole = {
        name: value
        for name, value in message.content.config_records["signature"].items()
        if name != "signature"
    }
    admission = site(keys, tmp_path)

    def holds(draw: Any) -> None:
        record = changed(draw, dict(whole))
        usable = isinstance(record, dict) and all(isinstance(name, str) for name in record)
        try:
            message.content["signature"] = ConfigRecord(
                {**(record if usable else {}), "signature": draw.draw(st.binary(max_size=80))}
            )
        except (TypeError, ValueError):
            return
        assert refusal(admission, message) in ("not_signed", "signature")

    check(examples, st.data(), holds)


@settings(max_examples=100, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_a_ledger_of_any_bytes_is_read_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ledger = RequestLedger(Path(folder) / "ledger")
        ledger.path.write_bytes(content)
        try:
            ledger.enter(signing.Envelope(1, "a" * 32, 0, 2**39), 1000.0)
        except FedhubertError as error:
            assert error.code in ("ledger", "replayed", "expired")
            return
        with pytest.raises(FedhubertError):
            ledger.enter(signing.Envelope(1, "a" * 32, 0, 2**39), 1000.0)
