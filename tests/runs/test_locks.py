"""A folder's lock: one process at a time, and none once that process is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedhubert import files
from fedhubert.errors import CheckpointError
from fedhubert.files import FolderInUse, exclusively, is_locked

HOLD = """
import sys, time
from pathlib import Path
from fedhubert.files import exclusively
with exclusively(Path(sys.argv[1]), setting="out"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_holds_it_is_named_and_its_death_frees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_PATIENCE_S", 0.2)
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert is_locked(folder)
        with (
            pytest.raises(
                FolderInUse, match=f"{folder} is in use by process {holder.pid} on "
            ) as error,
            exclusively(folder, setting="out"),
        ):
            pass
        assert (error.value.code, error.value.setting) == ("folder_in_use", "out")
        os.kill(holder.pid, signal.SIGKILL)
    assert not is_locked(folder)
    with exclusively(folder, setting="out"):
        assert is_locked(folder)
    assert not is_locked(folder)


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    command = HOLD.replace("sleep(60)", "sleep(1)")
    with subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with exclusively(tmp_path, setting="out"):
            pass


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match=f"cannot write to {tmp_path / 'file'}"),
        exclusively(tmp_path / "file", setting="out"),
    ):
        pass
    assert not is_locked(tmp_path / "nothing")
