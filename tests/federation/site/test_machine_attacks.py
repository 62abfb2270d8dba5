"""Servers that reach for a site's files, memory, time or settings: each attack works on a site
whose policy refuses nothing, and not on a strict one."""

import json
from pathlib import Path

import pytest

from fedhubert.clients import data as clients_data
from fedhubert.federation.site import incoming
from fedhubert.federation.site.faults import InjectedCrash
from fedhubert.federation.wire.messages.nodes import Describe
from fedhubert.federation.wire.messages.targets import Label

from .server import Server, only, train


def test_a_server_deletes_nothing_by_a_state_folder_or_a_limit_of_its_choice(
    server: Server, tmp_path: Path
) -> None:
    victim = tmp_path / "any"
    for place in (victim, tmp_path / "state", tmp_path / "open"):
        (place / "labels").mkdir(parents=True)
        (place / "labels/labels-a.npy").write_bytes(bytes(100))
    elsewhere, little = [f"client.state_dir={victim}"], ["client.state_max_gb=0.000000001"]
    del server.node["state-dir"]
    assert server.refusal(Describe(), *elsewhere) == "client.state_dir"
    server.node["state-dir"] = str(tmp_path / "state")
    assert server.refusal(Describe(), *little) == "client.state_max_gb"
    assert server.refusal(Describe(), *elsewhere) == ""  # the site's own holds
    assert (victim / "labels/labels-a.npy").exists() and (
        tmp_path / "state/labels/labels-a.npy"
    ).exists()
    assert not (victim / "site.log").exists()

    manifest = str(server.node["manifest"])
    shared = Server({"partition-id": 0, "num-partitions": 1})
    shared.ask(
        Describe(), f"data.manifest={manifest}", *elsewhere, *little, "data.partition.kind=random"
    )
    assert not (victim / "labels/labels-a.npy").exists()
    server.without_policy(tmp_path).ask(Describe(), *little)
    assert (
        not (tmp_path / "open/labels/labels-a.npy").exists()
        and (tmp_path / "state/labels/labels-a.npy").exists()
    )


def test_a_server_opens_no_file_of_a_site(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def read(manifest: object, rows: object, labels: str, *rest: object) -> None:
        opened.append(labels)
        raise MemoryError

    monkeypatch.setattr(clients_data, "precomputed_labels", read)
    named = ["targets=precomputed", "targets.labels=/dev/zero"]
    request = Label(targets="precomputed")
    server.without_policy(tmp_path).ask(request, *named)
    assert opened == ["/dev/zero"]
    assert server.refusal(request, *named) == "targets.labels"
    server.node["labels"] = "/own.km"
    assert only(server.ask(request, *named).failures) == {"out_of_memory": ""}
    assert opened == ["/dev/zero", "/own.km"]


def test_a_server_has_no_giant_model_built(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    def build(model: object, *rest: object) -> None:
        built.append(model.num_layers)  # type: ignore[attr-defined]
        raise MemoryError

    monkeypatch.setattr(incoming, "travelling_model", build)
    deep = ["model.num_layers=10000000"]
    server.without_policy(tmp_path).ask(Describe(), *deep)
    assert built == [10**7]
    assert server.refusal(Describe(), *deep) == "model.num_layers" and built == [10**7]


def test_a_site_does_not_fail_on_purpose(server: Server, tmp_path: Path) -> None:
    crash = ["faults.crash=1"]
    open_door = server.without_policy(tmp_path)
    with pytest.raises(InjectedCrash):
        open_door.ask(train(open_door, *crash), *crash)
    for fault in ("crash=1", "delay_s=9", "nan=1", "truncate=0.5"):
        assert server.refusal(Describe(), f"faults.{fault}") == f"faults.{fault.partition('=')[0]}"


def test_the_server_is_told_the_key_and_the_site_all_of_it(server: Server, tmp_path: Path) -> None:
    reply = server.ask(Describe(), "model.num_layers=4321")
    assert only(reply.failures) == {"refused": "model.num_layers"} and "4321" not in repr(reply)
    assert reply.versions is not None and reply.versions.node == 0
    assert (
        "num_layers 4321 is more than model.max_layers allows: 24"
        in (tmp_path / "state/site.log").read_text()
    )
    (file,) = (tmp_path / "state/audit").iterdir()
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (
        line["asked"]["settings"]["model.num_layers"] == 4321 and len(line["asked"]["sha256"]) == 64
    )
