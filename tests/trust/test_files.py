"""What a file can do to who reads it, and others to the files that are written."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert import files
from fedhubert.clients.settings import log_on_site
from fedhubert.clients.state import PartitionState, StateFolder
from fedhubert.compose import compose
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import CheckpointError, ConfigError, quoted
from fedhubert.federation.privacy.opening import _outside
from fedhubert.federation.updates.exact_sum import ExactSum
from fedhubert.targets.features import kept_features

IMPORT = """
import sys; from fedhubert.errors import CheckpointError; from fedhubert.formats.{module} import {name}
from pathlib import Path
try: {name}(Path(sys.argv[1]))
except CheckpointError as error: print(error)
"""


@pytest.mark.parametrize(
    ("module", "name"), [("importing", "import_encoder"), ("round_file", "load_checkpoint")]
)
@pytest.mark.parametrize("shape", ["wide", "deep"])
def test_a_small_file_of_shared_lists_ends_with_an_error(
    tmp_path: Path, module: str, name: str, shape: str
) -> None:
    path, values = tmp_path / "lists.pt", list[object]()
    for _ in range(40 if shape == "wide" else 100):
        values = [values, values] if shape == "wide" else [values]
    torch.save({"model": {"weight": torch.zeros(1)}, "args": values}, path)
    command = [sys.executable, "-c", IMPORT.format(module=module, name=name), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "it holds more than" in done.stdout, done.stderr[-500:]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_a_site_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        state = tmp_path / "state"
        log_on_site(state)
        logging.getLogger("fedhubert.site").error("something")
        folder = StateFolder(state / "runs/abc/partition_00000")
        with folder.exclusively():
            folder.save(1, PartitionState(residual=torch.zeros(3)))
        DiskCache(state / "teacher_outputs", 10**6).put("aabb", {"x": torch.zeros(3)})
        kept_features(state / "features/f.npy", lambda allocate: allocate((2, 3)).fill(0.0))
    finally:
        os.umask(before)
        logging.getLogger("fedhubert.site").handlers.clear()
    found = [path for path in [state, *state.rglob("*")]]
    assert {path.name for path in found} >= {
        "site.log",
        "round_00001.pt",
        ".lock",
        "aabb.safetensors",
        "f.npy",
        "total",
    }
    wrong = [str(path) for path in found if mode(path) != (0o700 if path.is_dir() else 0o600)]
    assert not wrong
    files.write_temporary(tmp_path / "run.pt", lambda file: file.write(b"x"))
    assert (
        mode(files.temporary_path(tmp_path / "run.pt")) == 0o666 & ~before
    )  # a run's folder is as the umask says


def test_no_link_is_followed_where_a_file_is_written(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / files.LOCK_NAME).symlink_to(victim)
    with pytest.raises(CheckpointError), files.exclusively(folder, setting="out"):
        pass
    assert files.is_locked(folder)
    files.temporary_path(folder / "a.pt").symlink_to(victim)
    files.write_temporary(folder / "a.pt", lambda file: file.write(b"ours"))
    assert files.temporary_path(folder / "a.pt").read_bytes() == b"ours"
    (folder / "lines.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        files.append_durably(folder / "lines.jsonl", "{}")
    assert victim.read_text() == "precious"
    assert files.scratch_path(folder / "a.pt") != files.scratch_path(folder / "a.pt")


def test_a_message_quotes_little_of_a_large_value() -> None:
    assert (
        quoted("short") == "'short'"
        and len(quoted("x" * 10**6)) < 100
        and len(quoted(["y" * 10**4] * 9)) < 100
    )
    with pytest.raises(ConfigError) as error:
        compose([f"federated.strategy={'z' * 5000}"])
    assert len(str(error.value)) < 1000


def test_noise_that_the_grid_cannot_hold_is_refused_by_name() -> None:
    private = [
        "privacy=central",
        "federated.num_clients=100",
        "privacy.delta=1e-5",
        "federated.strategy=FedAvg",
    ]
    compose([*private, "privacy.target_quantile=0.5"])
    with pytest.raises(ConfigError, match=r"privacy\.count_noise"):
        compose(
            [
                *private,
                "privacy.target_quantile=0.5",
                "privacy.noise_multiplier=1",
                "privacy.count_noise=0.500000000001",
            ]
        )
    with pytest.raises(ValueError, match="on a grid"):
        ExactSum(2).add_noise(2.0**27, lambda count: np.zeros(count))


def test_a_teacher_and_an_extractor_are_named_among_what_epsilon_does_not_cover() -> None:
    def outside(*overrides: str) -> str:
        return " ".join(
            _outside(
                compose(
                    [
                        "experiment=demo_fedavg",
                        "privacy=central",
                        "federated.strategy=FedAvg",
                        *overrides,
                    ]
                )
            )
        )

    assert "task.teacher" in outside("task=distill", "task.teacher=/models/teacher.pt")
    assert "targets.checkpoint" in outside(
        "targets=layer", "targets.source=layer:6", "targets.checkpoint=/models/first"
    )
    assert "task.teacher" not in outside() and "targets.checkpoint" not in outside()
