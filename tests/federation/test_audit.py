"""What a site writes down of its messages: each one, before it leaves, and none of what is in it."""

import hashlib
import json
import resource
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedhubert.cli import main
from fedhubert.errors import FederationError
from fedhubert.federation.phases.targets import prepare_targets
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.site.audit import _entries
from fedhubert.federation.wire.arrays import sha256_of_ndarray

from .clients import SMALL
from .in_process import InProcessGrid, federation, open_policy
from .second_iteration import NotKept

Node = dict[str, str | int]
LIMIT = 10**6  # bytes that a file may have, where the disk is full


@pytest.fixture()
def sites(tone_folder: Path, tmp_path: Path) -> list[Node]:
    """Three sites, each with a manifest of its own in which is one speaker's audio."""
    nodes: list[Node] = []
    for number in range(3):
        manifest = tmp_path / f"site{number}.csv"
        assert (
            main(
                [
                    "prepare",
                    "folder",
                    "--root",
                    str(tone_folder / f"speaker{number}"),
                    "--out",
                    str(manifest),
                ]
            )
            == 0
        )
        place: Node = {
            "manifest": str(manifest),
            "audio-root": str(tone_folder / f"speaker{number}"),
        }
        nodes.append(
            {
                "partition-id": number,
                "num-partitions": 3,
                "state-dir": str(tmp_path / f"state{number}"),
                **place,
            }
        )
        nodes[-1]["policy"] = open_policy(tmp_path)
    return nodes


def lines(state: str | int) -> list[dict[str, Any]]:
    (file,) = (Path(str(state)) / "audit").iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(nodes: list[Node]) -> InProcessGrid:
    federated, grid = federation([*SMALL, "targets.max_iterations=2"], nodes)
    connect(federated)
    prepare_targets(federated, (), NotKept(), lambda event: None)
    return grid


def entry(line: dict[str, Any], record: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [
        item for item in line["sent"] if item["record"] == record and item.get("name") == name
    ]
    return found


def test_each_message_is_written_down_with_the_digests_of_what_left(sites: list[Node]) -> None:
    grid = run(sites)
    for number, node in enumerate(sites):
        sent: list[Message] = [
            answer for answer in grid.answers if answer.metadata.src_node_id == 100 + number
        ]
        written = lines(node["state-dir"])
        assert [line["kind"] for line in written] == [
            answer.metadata.message_type for answer in sent
        ]
        for line, answer in zip(written, sent, strict=True):
            held = answer.content.array_records.get("arrays") or {}
            arrays = {name: item.numpy() for name, item in held.items()}
            assert {item["name"] for item in line["sent"] if item["record"] == "arrays"} == set(
                arrays
            )
            for name, array in arrays.items():
                about = entry(line, "arrays", name)
                assert (
                    about["sha256"]
                    == hashlib.sha256(array.tobytes()).hexdigest()
                    == sha256_of_ndarray(array)
                )
                assert (about["shape"], about["dtype"], about["bytes"]) == (
                    list(array.shape),
                    str(array.dtype),
                    array.nbytes,
                )
            for name, record in [
                *answer.content.metric_records.items(),
                *answer.content.config_records.items(),
            ]:
                text = json.dumps(dict(record), sort_keys=True)
                assert entry(line, name)["sha256"] == hashlib.sha256(text.encode()).hexdigest()
                assert entry(line, name)["names"] == sorted(record)
        assert written[-1]["run"] == "run" and written[-1]["partitions"] == [number]


def test_what_was_asked_stands_beside_what_was_sent(sites: list[Node]) -> None:
    grid = run(sites)
    asked = [message for message in grid.requests if message.metadata.dst_node_id == 100]
    written = lines(sites[0]["state-dir"])
    for line, message in zip(written, asked, strict=True):
        about = line["asked"]
        arrays = message.content.array_records.get("arrays", {})
        assert about["bytes"] >= sum(array.numpy().nbytes for array in arrays.values())
        assert (
            about["settings"]["data.min_seconds"] == 0.5
            and about["settings"]["targets.num_clusters"] == 6
        )
    digests = {line["kind"]: line["asked"]["sha256"] for line in written}
    assert len(set(digests.values())) == len(digests)
    message = asked[-1]
    again = {item["record"]: item for item in _entries(message.content)}
    text = json.dumps(dict(message.content.config_records["request"]), sort_keys=True).encode()
    assert again["request"]["sha256"] == hashlib.sha256(text).hexdigest()
    whole = json.dumps(_entries(message.content), sort_keys=True).encode()
    assert written[-1]["asked"]["sha256"] == hashlib.sha256(whole).hexdigest()


def test_it_is_added_to_and_a_line_cut_short_spoils_no_other(sites: list[Node]) -> None:
    run(sites)
    (file,) = (Path(str(sites[0]["state-dir"])) / "audit").iterdir()
    whole = file.read_text()
    file.write_text(whole + '{"time": "20')  # a kill, or a full disk
    run(sites)
    after = file.read_text()
    assert (
        after.startswith(whole + '{"time": "20\n{')
        and len(after.splitlines()) == 2 * len(whole.splitlines()) + 1
    )


def test_failures_are_written_down_too_and_who_does_not_want_a_log_has_none(
    sites: list[Node],
) -> None:
    sites[1] |= {"manifest": "/nowhere.csv"}
    sites[2] |= {"audit": False}  # Flower's --node-config knows true and false
    with pytest.raises(FederationError, match="data"):
        run(sites)
    (line,) = lines(sites[1]["state-dir"])
    assert entry(line, "failures")["names"] == [
        "code",
        "partition",
        "setting",
    ] and "nowhere" not in json.dumps(line)
    assert not (Path(str(sites[2]["state-dir"])) / "audit").exists()


def test_sites_of_a_simulation_keep_none_unless_asked(tone_folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    data = [
        *SMALL,
        f"data.manifest={manifest}",
        f"data.root={tone_folder}",
        f"client.state_dir={tmp_path / 'state'}",
    ]
    nodes: list[Node] = [{"partition-id": number, "num-partitions": 3} for number in range(3)]
    connect(federation(data, nodes)[0])
    assert not (tmp_path / "state/audit").exists()
    connect(federation(data, [{**node, "audit": "true"} for node in nodes])[0])
    assert len(lines(str(tmp_path / "state"))) == 6


@pytest.mark.parametrize("fault", ["no folder", "disk full", "neither"])
def test_what_cannot_be_written_down_does_not_leave(
    sites: list[Node], request: pytest.FixtureRequest, fault: str
) -> None:
    state = Path(str(sites[0]["state-dir"]))
    if fault == "no folder":
        state.mkdir()
        (state / "audit").write_text("in the way")
    elif fault == "disk full":
        (state / "audit").mkdir(parents=True)
        file = state / f"audit/{datetime.now(UTC):%Y-%m-%d}.jsonl"
        file.write_text(" " * (LIMIT - 9) + "\n")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    else:
        sites[0]["audit"] = "perhaps"
    federated, grid = federation(SMALL, sites[:1])
    with pytest.raises(FederationError, match=r"audit \(see audit\)"):
        connect(federated)
    (answer,) = grid.answers
    assert set(answer.content) == {"failures", "info"} and set(answer.content["info"]) == {
        "protocol",
        "version",
    }
    told = (state / "site.log").read_text()
    assert "Traceback" not in told and (
        "neither true nor false" in told if fault == "neither" else "nothing is sent" in told
    )
