"""The process that watches a site's worker, with jobs that hang, die and raise: there always is a reply, and the next message is answered."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedhubert.cli import main
from fedhubert.errors import ConfigError
from fedhubert.federation.site import supernode
from fedhubert.federation.site.admission import Guard
from fedhubert.federation.site.context import SiteOptions, explain_policy, site_context
from fedhubert.federation.site.identity import SignedRequests
from fedhubert.federation.site.policy import default_policy
from fedhubert.federation.site.resident import Resident
from fedhubert.federation.site.supernode import OwnNode
from fedhubert.federation.site.work import Pulled, limit_s, printable, refusals
from fedhubert.federation.site.worker import Job, Raised, Ready, Worker, WorkerDied
from fedhubert.federation.wire.flower.supernode import Task, Unreachable

from .behaving import FALLBACK, PATIENCE_S, Behaving


@dataclass
class FakeNode:
    """A SuperNode that hands out these jobs and writes down what is done with them; it stops the site when there are no more."""

    jobs: list[str]
    wanted: bool = True
    envelope: Task | None = None
    address: str = "here:1"
    replies: int = 0
    done: list[tuple[str, ...]] = field(default_factory=list)
    over: list[str] = field(default_factory=list)
    resident: Resident | None = None

    @property
    def api(self) -> "FakeNode":
        return self

    def tend(self) -> bool:
        return True

    def has_passed_on(self, replies: int) -> bool:
        return True

    def renew(self) -> None:
        self.done.append(("renew",))

    def stop(self) -> None:
        self.done.append(("stop",))

    def claim(self) -> str | None:
        if not self.jobs:
            assert self.resident
            self.resident.stop()
            return None
        return self.jobs.pop(0)

    def beat(self, token: str) -> bool:
        return self.wanted

    def pull_envelope(self, token: str) -> Task | None:
        return self.envelope

    def push(self, token: str, reply: object, task: Task) -> None:
        assert (reply, task) == (None, FALLBACK)
        self.done.append(("error reply", token))

    def finish(self, token: str, error: str = "") -> None:
        if error:
            self.done.append(("finish", token))
        else:
            self.over.append(token)


def see(node: FakeNode, work: Behaving | None = None, **limits: float) -> list[str]:
    """Have a site answer the node's messages; returns what it says, without times."""
    said: list[str] = []
    worker = Worker(work or Behaving())
    node.resident = Resident(node, worker, said.append, margin_s=0.2, **limits)  # type: ignore[arg-type]
    assert node.resident.run() == 0
    assert worker.pid is None and node.done[-1] == ("stop",)
    return said


def test_what_is_asked_done_refused_and_sent_is_a_line_each() -> None:
    node = FakeNode(["fine", "refuse"])
    said = see(node)
    assert node.over == ["fine", "refuse"] and node.done == [("stop",)]
    assert said[0].startswith("ready")
    assert said[1] == "train.round 4 asked, 2.0 MB" and said[2].startswith("train.round 4 done in ")
    assert (
        said[2].endswith("reply sent, 1.0 MB") and ": config (data.manifest); reply sent" in said[4]
    )


@pytest.mark.parametrize(
    ("what", "why"),
    [("hang", "not done after"), ("exit", "exit code 3"), ("raise", "ValueError (see site.log")],
)
def test_whatever_becomes_of_a_message_it_is_answered_and_so_is_the_next(
    what: str, why: str
) -> None:
    node = FakeNode([what, "fine"])
    said = see(node, Behaving(limit_s=1.0 if what == "hang" else PATIENCE_S))
    assert node.done == [("error reply", what), ("finish", what), ("stop",)]
    failed = [line for line in said if "failed" in line]
    assert (
        len(failed) == 1
        and why in failed[0]
        and "told that there is no reply" in failed[0]
        and "secret" not in " ".join(said)
    )
    assert said[-2].startswith("train.round 4 done")
    assert sum(line.startswith("ready") for line in said) == (
        1 if what == "raise" else 2
    )  # else a new worker


def test_a_message_that_was_not_even_read_is_answered_or_left_to_the_supernode() -> None:
    node = FakeNode(["die unread", "fine"])
    said = see(node)
    assert node.done == [("stop",)] and any(
        "tells the coordinator within a minute" in line for line in said
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fedhubert.federation.site.resident.error_reply", lambda message, reason: message
        )
        node = FakeNode(["die unread"], envelope=FALLBACK)
        see(node)
    assert node.done == [("error reply", "die unread"), ("finish", "die unread"), ("stop",)]


def test_half_a_reply_makes_the_supernode_begin_anew() -> None:
    node = FakeNode(["die pushing", "fine"])
    said = see(node)
    assert node.done == [("renew",), ("stop",)] and any(
        "while its reply was leaving" in line for line in said
    )


def test_work_that_nobody_wants_any_more_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedhubert.federation.site.resident.BEAT_S", 0.3)
    node = FakeNode(["hang", "fine"], wanted=False)
    assert any("nobody wants it any more" in line for line in see(node))


class Stopping(FakeNode):
    """Tells the site to stop while its message is in work."""

    def claim(self) -> str | None:
        token = super().claim()
        assert self.resident
        self.resident.stop()
        return token


def test_a_site_that_is_stopped_finishes_what_is_nearly_done_and_abandons_the_rest() -> None:
    assert any("done in" in line for line in see(Stopping(["slow"]), grace_s=PATIENCE_S))
    node = Stopping(["hang"])
    assert any("failed: the site stops" in line for line in see(node, grace_s=0.5))
    assert node.done == [("error reply", "hang"), ("finish", "hang"), ("stop",)]


def test_ctrl_c_has_its_own_exit_code() -> None:
    node = FakeNode([])
    resident = Resident(node, Worker(Behaving()), lambda line: None)  # type: ignore[arg-type]
    resident.stop(2)
    assert resident.run() == 130


def test_a_supernode_that_is_away_is_waited_for_and_said_once() -> None:
    class Away(FakeNode):
        calls = 0

        def claim(self) -> str | None:
            self.calls += 1
            if self.calls < 4:
                raise Unreachable("SuperNode at here:1: ConnectError")
            return super().claim()

    said = see(Away(["fine"]))
    assert sum("waiting for the SuperNode" in line for line in said) == 1 and any(
        "train.round 4 done" in line for line in said
    )


def test_a_worker_says_how_it_ended() -> None:
    worker = Worker(Behaving())
    worker.start()
    assert worker.wait(PATIENCE_S) == Ready() and not worker.busy
    worker.do(Job("", "raise"))
    assert isinstance(worker.wait(PATIENCE_S), Pulled) and worker.wait(PATIENCE_S) == Raised(
        "ValueError"
    )
    assert worker.pid is not None
    os.kill(worker.pid, 9)
    with pytest.raises(WorkerDied, match="killed by SIGKILL"):
        worker.wait(PATIENCE_S)
    worker.stop()


# -- what a message says of itself


def message(task: str, ttl_s: float = 4200.0) -> Message:
    return Message(
        RecordDict({"request": ConfigRecord({"task": task})}), 1, "train.round", ttl=ttl_s
    )


@pytest.mark.usefixtures("app_identity")
def test_the_limit_of_a_message_is_its_budget_or_its_time_to_live() -> None:
    assert limit_s(message('{"budget_s": 60}')) == 60
    for task in (
        '{"budget_s": 1e9}',
        '{"budget_s": NaN}',
        '{"budget_s": []}',
        "{}",
        "[" * 100_000,
        "no",
    ):
        assert limit_s(message(task)) == 4200.0
    assert limit_s(Message(RecordDict(), 1, "train.round", ttl=5.0)) == 5.0


@pytest.mark.usefixtures("app_identity")
def test_what_the_terminal_shows_is_printable() -> None:
    assert printable("train\x1b[2J\n" + "x" * 100) == "train?[2J?" + "x" * 54
    reply = Message(
        RecordDict(
            {"failures": ConfigRecord({"partition": [0], "code": ["data"], "setting": ["a.b"]})}
        ),
        1,
        "query",
    )
    assert refusals(reply) == ("data (a.b)",)


# -- the SuperNode, played by a script


def test_a_supernode_is_started_again_until_its_key_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "supernode.sh"
    script.write_text(
        f"#!/bin/sh\nif [ ! -e {tmp_path}/seen ]; then touch {tmp_path}/seen; echo '[code: 2004] Failed'; exit 203; fi\n"
        "echo 'SuperNode ID: 7'; echo 'Sent successfully'; exec sleep 3600\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(supernode, "supernode_command", lambda *_: [str(script)])
    monkeypatch.setattr(supernode, "FIRST_PAUSE_S", 0.1)
    said: list[str] = []
    node = OwnNode("coordinator:1", None, None, tmp_path / "supernode.log", said.append)
    deadline = time.monotonic() + PATIENCE_S
    while not (node.tend() and node.has_passed_on(1)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (
        said[0].startswith("SuperNode: the coordinator does not take the key: it counts as in use")
        and "again in" in said[0]
    )
    assert said[1] == "connected to coordinator:1"
    assert "SuperNode ID: 7" in (tmp_path / "supernode.log").read_text()
    secret = node._secret
    assert secret.stat().st_mode & 0o077 == 0 or secret.parent.stat().st_mode & 0o077 == 0
    pid = node.pid
    node.stop()
    assert pid and not Path(f"/proc/{pid}").exists() and not secret.exists()


# -- the policy


def test_a_site_obeys_its_coordinator_within_its_policy(tmp_path: Path) -> None:
    """Keys are asked first, then the policy: the strict one where the site has audio of its own and names no other."""
    assert (
        main(
            [
                "certs",
                "--coordinator",
                "--host",
                "localhost",
                "--out",
                str(tmp_path / "coordinator"),
            ]
        )
        == 0
    )
    config = {
        "partition-id": 0,
        "num-partitions": 2,
        "state-dir": str(tmp_path / "state"),
        "manifest": str(tmp_path / "calls.csv"),
        "coordinator-key": str(tmp_path / "coordinator/coordinator.pub"),
    }
    signed, guarded = site_context(SiteOptions(config)).admissions
    assert isinstance(signed, SignedRequests) and isinstance(guarded.__self__, Guard)
    assert guarded.__self__.policy == default_policy(own_data=True)
    (tmp_path / "policy.yaml").write_text(
        explain_policy(None).replace("min_frames: 20", "min_frames: 50")
    )
    (_, guarded) = site_context(
        SiteOptions({**config, "policy": str(tmp_path / "policy.yaml")})
    ).admissions
    assert guarded.__self__.policy.kmeans.min_frames == 50
    with pytest.raises(ConfigError, match="nothing-there"):
        site_context(SiteOptions({**config, "policy": str(tmp_path / "nothing-there.yaml")}))
