"""One worker of a site that answers two hundred messages: the bits of fresh processes, and no more memory than at the beginning."""

import hashlib
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.app import Message

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.site.answering import answer
from fedhubert.federation.site.context import SiteOptions, site_context
from fedhubert.federation.site.worker import Done, Event, Job, Ready, Say, Worker
from tests.flower import identify
from tests.integration.conftest import SMALL

from .behaving import PATIENCE_S
from .in_process import InProcessGrid, open_policy


@dataclass(frozen=True)
class Answered(Event):
    """What a reply is like, and the process that gave it."""

    digest: str
    resident_bytes: int


@dataclass(frozen=True)
class Replaying:
    """Work whose messages lie in a file, by their number."""

    file: Path
    config: dict[str, str | int]

    def prepare(self) -> None:
        identify()
        self.messages.extend(pickle.loads(self.file.read_bytes()))

    @property
    def messages(self) -> list[Message]:
        return MESSAGES

    def __call__(self, job: Job, say: Say) -> None:
        reply = answer(self.messages[int(job.token)], site_context(SiteOptions(self.config)))
        digest = hashlib.sha256()
        for record in reply.content.array_records.values():
            for name, array in record.items():
                digest.update(name.encode() + array.numpy().tobytes())
        for name, values in sorted(
            (name, values) for name, values in reply.content.config_records.items()
        ):
            digest.update(f"{name} {dict(values)}".encode())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        say(Answered(digest.hexdigest(), pages * os.sysconf("SC_PAGE_SIZE")))


MESSAGES: list[Message] = []
"""Of a :class:`Replaying` worker's process."""


def answers(work: Replaying, numbers: list[int]) -> list[Answered]:
    """Return the answers of one worker to those messages."""
    worker, found = Worker(work), []
    worker.start()
    try:
        assert worker.wait(PATIENCE_S) == Ready()
        for number in numbers:
            worker.do(Job("", str(number)))
            event = worker.wait(PATIENCE_S)
            assert isinstance(event, Answered), event
            found.append(event)
            assert worker.wait(PATIENCE_S) == Done()
    finally:
        worker.stop()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_two_hundred_messages_have_the_bits_of_fresh_processes_and_take_no_more_memory(
    tone_folder: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    small = [
        "experiment=demo_fedavg",
        *SMALL,
        f"data.manifest={manifest}",
        "federated.num_clients=1",
        "federated.num_rounds=3",
    ]
    config: dict[str, str | int] = {
        "partition-id": 0,
        "num-partitions": 1,
        "manifest": str(manifest),
        "policy": open_policy(tmp_path),
    }
    config |= {
        "audio-root": str(tone_folder),
        "state-dir": str(tmp_path / "state"),
        "device": "cpu",
    }
    grid = InProcessGrid([config])
    run_federation(grid, compose([*small, f"out={tmp_path / 'run'}"]))
    kinds = [request.metadata.message_type for request in grid.requests]
    assert {"query.describe", "train.round", "evaluate.model"} <= set(kinds)
    file = tmp_path / "messages"
    file.write_bytes(pickle.dumps(grid.requests))
    work = Replaying(file, config)
    numbers = [number % len(kinds) for number in range(200)]
    found = answers(work, numbers)
    first_round = kinds.index("train.round")
    for number in (
        0,
        first_round,
        first_round + 1,
    ):  # what a process says that has done nothing else
        (fresh,) = answers(work, [number])
        assert {
            answer.digest for answer, asked in zip(found, numbers, strict=True) if asked == number
        } == {fresh.digest}
    assert len({answer.digest for answer in found}) > 3
    early, late = found[49].resident_bytes, found[-1].resident_bytes
    print(f"resident after 50 messages {early / 1e6:.1f} MB, after 200 {late / 1e6:.1f} MB")
    assert late - early < 8e6
