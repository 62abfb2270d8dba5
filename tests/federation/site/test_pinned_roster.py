"""A site that has pinned a roster sends nothing unmasked: no kind of message gets it to, and a run without masks ends at the start."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedhubert.compose import compose
from fedhubert.deployment.keys import key_pair, read_verify_key
from fedhubert.errors import ConfigError, FederationError
from fedhubert.federation.secure.roster import Roster, write_roster
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.site.answering import site_context
from fedhubert.federation.site.table import HANDLERS
from fedhubert.federation.site.unmasked import NEEDS_NO_MASK, Pinned, pinned_from
from fedhubert.federation.wire.messages.characters import CountCharacters
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.messages.nodes import Describe, Description, HasExtractor, HasTeacher
from fedhubert.federation.wire.messages.rounds import Evaluate
from fedhubert.federation.wire.messages.targets import Label, MomentsKMeans, SeedKMeans, StepKMeans
from fedhubert.targets.kmeans import centroids_hash
from tests.federation.in_process import InProcessGrid

from .server import CENTROIDS, JOB, Node, Server, answered, only, train


def pin(node: Node, folder: Path, *, number: int = 0, least: int = 3) -> Node:
    """Return the configuration of a node that is ``number`` of a roster of four, with its key."""
    folder.mkdir(exist_ok=True)
    sites = {}
    for site in range(4):
        private, public = key_pair(f"site-{site}")
        (folder / f"site-{site}.key").touch(mode=0o600)
        (folder / f"site-{site}.key").write_bytes(private)
        (folder / f"site-{site}.pub").write_bytes(public)
        sites[site] = read_verify_key(folder / f"site-{site}.pub", setting="x").public_bytes_raw()
    write_roster(folder / "roster.json", Roster("test", least, sites))
    return {
        **node,
        "roster": str(folder / "roster.json"),
        "site-key": str(folder / f"site-{number}.key"),
    }


@pytest.fixture
def pinned(server: Server, tmp_path: Path) -> Server:
    return replace(server, node=pin(server.node, tmp_path / "keys"))


def sends_what_was_learned(server: Server) -> list[Instruction]:
    """One of each kind whose answer has something of the audio in it, without the terms of a secure sum."""
    centroids = {"centroids": CENTROIDS}
    taught = train(server)
    shared = taught.model_dump(include={"round", "positions", "layout", "targets"})
    scored = Evaluate.model_validate({**shared, "arrays": taught.arrays})
    counted = Label(targets=centroids_hash(CENTROIDS), arrays=centroids)
    steps = StepKMeans(arrays=centroids)
    return [taught, scored, CountCharacters(), SeedKMeans(), MomentsKMeans(), steps, counted]


def test_nothing_unmasked_leaves_whatever_is_asked(pinned: Server) -> None:
    """Each kind that is known is here: in a run without secure aggregation, and in one with it that does not ask for a sum."""
    asked = sends_what_was_learned(pinned)
    assert {type(each) for each in asked} == set(HANDLERS) - NEEDS_NO_MASK
    for instruction in asked:
        for overrides in ((), ("secure=pairwise",)):
            reply = pinned.ask(instruction, *overrides)
            assert reply.answer is None and not reply.metrics
            assert only(reply.failures) == {"secure_required": "secure.protocol"}


def test_a_run_without_masks_is_refused_at_its_first_word(pinned: Server, tmp_path: Path) -> None:
    for instruction in (Describe(), HasExtractor(extractor="x"), HasTeacher(teacher="x")):
        reply = pinned.ask(instruction)
        assert reply.answer is None and only(reply.failures) == {
            "secure_required": "secure.protocol"
        }
    said = (tmp_path / "state/site.log").read_text()
    assert "has pinned the roster of test" in said and "secure=pairwise" in said
    about = answered(pinned.ask(Describe(), "secure=pairwise"), Description)
    assert about.metrics[0]["train_utterances"] > 0


def test_a_refusal_costs_the_site_nothing_of_its_policys_counts(pinned: Server) -> None:
    for number in range(5):  # different ways to cut: the policy answers four a day
        reply = pinned.ask(Describe(), f"data.max_seconds={2 + number / 100}")
        assert only(reply.failures) == {"secure_required": "secure.protocol"}
    answered(pinned.ask(Describe(), "secure=pairwise"), Description)


def test_a_run_ends_at_preflight_with_the_sites_number_and_the_key(
    site_manifest: Path, tmp_path: Path
) -> None:
    configs: list[Node] = [
        {
            "partition-id": number,
            "num-partitions": 3,
            "manifest": str(site_manifest),
            "state-dir": str(tmp_path / f"state-{number}"),
        }
        for number in range(3)
    ]
    configs[1] = pin(configs[1], tmp_path / "keys", number=1)
    config = compose([*JOB, f"out={tmp_path / 'run'}", "federated.connect_timeout_s=5"])
    with pytest.raises(FederationError, match=r"secure_required \(see secure.protocol\)") as ended:
        run_federation(InProcessGrid(configs), config)
    assert "site 1" in str(ended.value) and ended.value.setting == "secure.protocol"
    assert not list((tmp_path / "run").rglob("round_*.pt"))


def test_a_roster_comes_before_the_policy_and_needs_the_sites_own_key(
    server: Server, tmp_path: Path
) -> None:
    node = pin(server.node, tmp_path / "keys")
    first, *others = site_context(node).admissions
    assert isinstance(first, Pinned) and len(others) == 1 and first.number == 0
    assert pinned_from(server.node) is None and pinned_from({**node, "roster": ""}) is None
    wrong: list[tuple[Node, str]] = [
        ({**node, "site-key": ""}, "needs its long-term key"),
        ({**node, "site-key": str(tmp_path / "keys/site-1.key")}, "as that of site 1"),
        ({**node, "partition-id": 3}, "as that of site 0"),
        ({**node, "roster": str(tmp_path / "none.json")}, "cannot read"),
    ]
    for config, words in wrong:
        with pytest.raises(ConfigError, match=words):
            site_context(config)


def test_a_roster_that_cannot_be_used_is_no_reason_to_answer_without(
    pinned: Server, tmp_path: Path
) -> None:
    (tmp_path / "keys/roster.json").write_text("{}")
    for overrides in ((), ("secure=pairwise",)):
        reply = pinned.ask(Describe(), *overrides)
        assert reply.answer is None and only(reply.failures) == {"secure_roster": "roster"}
