"""What is on disk when saving fails or is cut off, and which rounds are kept."""

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from fedhubert.errors import CheckpointError
from fedhubert.runs.store import RoundStore

from .stores import flip, names, save, store

__all__ = ["store"]  # fixtures


@pytest.mark.parametrize("number", [1, 2])
def test_full_disk_leaves_what_was_there(
    store: RoundStore, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    before = names(store)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=rf"cannot write to {store.folder}: No space left on device"
    ) as caught:
        save(store, number)
    assert caught.value.setting == "checkpoint_dir"
    assert names(store) == before
    assert store.latest().round == 1


@pytest.mark.parametrize("number", [1, 2])
def test_writes_that_fail_midway_leave_what_was_there(store: RoundStore, number: int) -> None:
    """A real failure of ``write``, deep inside torch's writer: the process may write no file larger than 64 kB."""
    save(store, 1)
    before = names(store)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(
            CheckpointError, match=rf"cannot write to {store.folder}: File too large"
        ):
            save(store, number, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(store) == before
    assert store.latest().load()[0]["round"] == 1


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write to .*file/checkpoints"):
        save(RoundStore(tmp_path / "file" / "checkpoints"), 1)


@pytest.mark.parametrize("same_round", [False, True])
def test_a_kill_at_any_moment_leaves_the_newest_round_intact(
    store: RoundStore, same_round: bool
) -> None:
    save(store, 1)
    rng = random.Random(0)
    kills = interrupted = 0
    while kills < 12 or (not interrupted and kills < 100):  # a busy machine may not get to a save
        kills += 1
        child = os.fork()
        if child == 0:
            try:
                number = store.latest().round or 0
                while True:
                    number = 2 if same_round else number + 1
                    save(store, number, size=300_000)
                    store.prune(2)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.02, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        interrupted += any(name.endswith(".tmp") for name in names(store))
        found = store.latest()
        assert found.rejected == []
        checkpoint, kept = found.load()
        assert checkpoint["round"] == found.round
        assert torch.all(checkpoint["model"]["weight"] == found.round)
        assert torch.all(kept["m"] == 0.5 + checkpoint["round"])
    assert interrupted, "no kill met a save: the test shows nothing"
    save(store, 999)
    store.prune(1)
    assert names(store) == [
        "round_999_checkpoint.pt",
        "round_999_checkpoint.sha256",
        "round_999_resume.pt",
    ]


def test_pruning_keeps_the_newest(store: RoundStore) -> None:
    for number in (1, 2, 3, 10):
        save(store, number)
    (store.folder / "round_other.txt").touch()
    store.prune(2)
    assert store.rounds() == [3, 10]
    assert len(names(store)) == 7


@pytest.mark.parametrize("same_process", [False, True])
def test_pruning_never_takes_the_newest_intact_round(store: RoundStore, same_process: bool) -> None:
    for number in (1, 2, 3, 4):
        save(store, number)
    if not same_process:
        for number in (3, 4):
            flip(store.path(number), 0.5)
        store = RoundStore(store.folder)
    store.prune(1)
    assert store.rounds() == ([4] if same_process else [2, 4])
    assert store.latest().round == (4 if same_process else 2)
