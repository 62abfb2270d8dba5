"""What a site has to do with its SuperNode, over Flower's own API: who may take a message, what comes with it, and what goes back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedhubert.federation.site.context import SiteOptions
from fedhubert.federation.site.work import Pulled, Pushing, SiteWork
from fedhubert.federation.site.worker import Event, Job
from fedhubert.federation.wire.flower.private import UnsupportedFlower
from fedhubert.federation.wire.flower.supernode import (
    SuperNodeApi,
    Unreachable,
    error_reply,
    supernode_command,
)
from tests.flower import HandMadeSuperNode, record_of

NPY_HEADER_BYTES = 128
SECRET = b"known to the site alone"


@pytest.fixture
def node() -> Iterator[HandMadeSuperNode]:
    made = HandMadeSuperNode(SECRET)
    yield made
    made.close()


def stranger(kind: str = "train.round") -> Message:
    from flwr.app import Array

    values = record_of(weights=Array(np.ones(1000, np.float32)))
    return Message(RecordDict({"arrays": values}), 1, kind, group_id="3", ttl=60.0)


def test_a_message_is_taken_once_answered_and_over(node: HandMadeSuperNode) -> None:
    api = SuperNodeApi(node.address, SECRET)
    assert api.claim() is None
    node.hand_out(stranger())
    token = api.claim()
    assert token and api.claim() is None
    assert api.beat(token)
    task = api.pull(token)
    assert task.message.metadata.message_type == "train.round"
    assert task.message.content["arrays"]["weights"].numpy().sum() == 1000
    api.push(
        token,
        Message(RecordDict({"arrays": task.message.content["arrays"]}), reply_to=task.message),
        task,
    )
    api.finish(token)
    (reply,) = node.replies()
    assert reply.content["arrays"]["weights"].numpy().sum() == 1000 and node.unfinished() == 0
    assert not api.beat(token)  # nobody waits any more


def test_who_does_not_know_the_secret_is_given_nothing(node: HandMadeSuperNode) -> None:
    node.hand_out(stranger())
    with pytest.raises(Unreachable, match="401"):
        SuperNodeApi(node.address, b"a guess").claim()
    with pytest.raises(Unreachable):
        SuperNodeApi(node.address, SECRET).pull("a guess")
    assert SuperNodeApi(node.address, SECRET).claim()


def test_a_reply_that_says_that_there_is_none(node: HandMadeSuperNode) -> None:
    api = SuperNodeApi(node.address, SECRET)
    node.hand_out(stranger())
    token = api.claim()
    assert token
    task = api.pull(token)
    api.push(token, error_reply(task.message, "the site could not answer"), task)
    api.finish(token, "failed")
    (reply,) = node.replies()
    assert (
        reply.has_error()
        and reply.error.reason == "the site could not answer"
        and node.unfinished() == 0
    )


def test_a_message_that_nobody_has_read_can_still_be_refused(node: HandMadeSuperNode) -> None:
    api = SuperNodeApi(node.address, SECRET)
    node.hand_out(stranger())
    token = api.claim()
    assert token
    task = api.pull_envelope(token)
    assert task and not task.message.content and api.pull_envelope(token) is None
    api.push(token, error_reply(task.message, "the site could not answer"), task)
    api.finish(token, "failed")
    (reply,) = node.replies()
    assert reply.has_error() and node.unfinished() == 0


@pytest.mark.parametrize("kind", ["query", "train", "train.round"])
@pytest.mark.parametrize("task", ["flwr-clientapp", "flwr-agentapp"])
def test_the_code_of_a_run_is_not_looked_at(
    node: HandMadeSuperNode, tmp_path: Path, kind: str, task: str
) -> None:
    """What is no request of fedhubert's is answered with a code, whatever archive comes with it: this one could not even be opened."""
    node.hand_out(stranger(kind), b"no archive at all", task)
    token = SuperNodeApi(node.address, SECRET).claim()
    assert token
    said: list[Event] = []
    SiteWork(SiteOptions({"partition-id": 0, "num-partitions": 1, "state-dir": str(tmp_path)}))(
        Job(node.address, token), said.append
    )
    pulled, pushing = said
    assert isinstance(pulled, Pulled) and (
        pulled.kind,
        pulled.group,
        pulled.num_bytes,
        pulled.limit_s,
    ) == (kind, "3", 4000 + NPY_HEADER_BYTES, 60.0)
    assert pushing == Pushing(0, ("federation (version)",))
    (reply,) = node.replies()
    assert reply.content.config_records["failures"]["code"] == ["federation"]


def test_a_supernode_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="SuperNode at 127.0.0.1:1: ConnectError"):
        SuperNodeApi("127.0.0.1:1", SECRET).claim()
    assert "secret" not in repr(SuperNodeApi("127.0.0.1:1", SECRET)).lower().replace("known", "")


def test_a_flower_that_has_it_elsewhere_is_an_error_by_name(
    node: HandMadeSuperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flwr.supernode.runtime.run_clientapp", None)
    with pytest.raises(
        UnsupportedFlower, match="run_clientapp.pull_task_input; fedhubert supports"
    ):
        SuperNodeApi(node.address, SECRET).pull("token")


def test_the_supernode_is_started_to_run_no_code() -> None:
    command = supernode_command("h:1", 9000, Path("/s"), Path("/ca"), Path("/k"))
    assert (
        command[1:4] == ["-P", "-m", "fedhubert.federation.wire.flower.supernode_process"]
        and "--isolation=process" in command
        and "--host=127.0.0.1" in command
    )
    assert "--insecure" not in command and "--insecure" in supernode_command(
        "h:1", 9000, Path("/s"), None, None
    )
