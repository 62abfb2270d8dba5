import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.errors import CheckpointError
from fedhubert.formats.round_file import find_checkpoint, load_checkpoint
from fedhubert.runs.store import RoundStore

from .stores import flip, names, save, store

__all__ = ["store"]  # fixtures


def test_is_read_by_plain_torch(store: RoundStore) -> None:
    path = save(store, 10)
    assert path.name == "round_010_checkpoint.pt"
    ckpt = torch.load(path, map_location="cpu", weights_only=True)
    assert (ckpt["round"], ckpt["federated_metrics"], ckpt["config"]["seed"]) == (
        10,
        {"loss": 2.5},
        1,
    )
    assert torch.equal(ckpt["model"]["weight"], torch.full((1000,), 10.0))
    assert list(ckpt["model"]) == ["weight", "bias"]


def test_round_trip_with_what_resuming_needs(store: RoundStore) -> None:
    save(store, 9)
    save(store, 1000)
    found = store.latest()
    assert (found.round, found.rejected, store.rounds()) == (1000, [], [9, 1000])
    checkpoint, kept = found.load()
    assert checkpoint["round"] == 1000
    assert torch.equal(kept["m"], torch.full((1000,), 1000.5))
    assert kept["positions"] == {"3": 7}


def test_values_become_plain_and_weights_float32(store: RoundStore) -> None:
    flat = torch.arange(100_000, dtype=torch.float64)
    state = {
        "view": flat[10:20],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "t": flat[:6].view(2, 3).T,
    }
    metrics = {
        "loss": np.float32(0.5),
        "frames": np.int64(7),
        "clients": ({"id": np.int32(1)}, None, True),
    }
    path = store.save(1, state, config={}, federated_metrics=metrics, resume=None)
    loaded = load_checkpoint(path)
    assert loaded["federated_metrics"] == {
        "loss": 0.5,
        "frames": 7,
        "clients": [{"id": 1}, None, True],
    }
    assert [type(loaded["federated_metrics"][key]) for key in ("loss", "frames")] == [float, int]
    assert {name: tensor.dtype for name, tensor in loaded["model"].items()} == {
        "view": torch.float32,
        "half": torch.float32,
        "count": torch.int64,
        "t": torch.float32,
    }
    assert torch.equal(loaded["model"]["t"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))
    assert path.stat().st_size < 10_000  # a view does not bring its whole storage


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = (save(RoundStore(tmp_path / name), 2).read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("where", ["config", "federated_metrics", "resume"])
def test_objects_are_refused_by_name(store: RoundStore, where: str) -> None:
    arguments: dict[str, Any] = {"config": {}, "federated_metrics": {}, "resume": {}} | {
        where: {"a": [1, {"b": Path("x")}]}
    }
    with pytest.raises(TypeError, match=rf"{where}\.a\[1\]\.b is a \w*Path"):
        store.save(1, {"w": torch.ones(1)}, **arguments)
    assert store.rounds() == []


def test_saving_again_replaces_the_whole_round(store: RoundStore) -> None:
    save(store, 1)
    save(store, 1, size=5, resume=False)
    assert names(store) == ["round_001_checkpoint.pt", "round_001_checkpoint.sha256"]
    assert len(load_checkpoint(store.path(1))["model"]["weight"]) == 5


def test_digests_are_those_of_sha256sum(store: RoundStore) -> None:
    save(store, 3)
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    subprocess.run(
        ["sha256sum", "--check", "--strict", "round_003_checkpoint.sha256"],
        cwd=store.folder,
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("file", ["checkpoint.pt", "resume.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_files_are_passed_over(store: RoundStore, file: str, keep: float) -> None:
    save(store, 1)
    save(store, 2)
    path = store.folder / f"round_002_{file}"
    os.truncate(path, int(path.stat().st_size * keep))
    found = store.latest()
    assert found.round == 1
    assert [(rejected.name, path.name in reason) for rejected, reason in found.rejected] == [
        ("round_002_checkpoint.pt", True)
    ]
    assert found.load()[0]["round"] == 1


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("file", ["checkpoint.pt", "resume.pt", "checkpoint.sha256"])
def test_flipped_bits_are_passed_over(store: RoundStore, file: str, place: float) -> None:
    save(store, 1)
    path = save(store, 2)
    flip(store.folder / f"round_002_{file}", place)
    assert store.latest().round == 1
    if file == "checkpoint.pt":
        with pytest.raises(
            CheckpointError, match=r"round_002_checkpoint\.pt is damaged .*earlier round"
        ):
            load_checkpoint(path)


def test_missing_sidecar_is_passed_over_but_can_be_read(store: RoundStore) -> None:
    save(store, 1)
    path = save(store, 2)
    (store.folder / "round_002_resume.pt").unlink()
    found = store.latest()
    assert (found.round, found.rejected) == (1, [(path, "round_002_resume.pt is missing")])
    assert load_checkpoint(path)["round"] == 2
    assert find_checkpoint(store.folder) == path


def test_copied_without_digests_it_is_checked_by_its_crcs(
    store: RoundStore, tmp_path: Path
) -> None:
    copy = tmp_path / "model.pt"
    shutil.copy(save(store, 4), copy)
    assert load_checkpoint(copy)["round"] == 4
    flip(copy, 0.5)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(copy)
    os.truncate(copy, 2000)
    with pytest.raises(CheckpointError, match="cut short"):
        load_checkpoint(copy)


def test_saved_without_a_sidecar_it_cannot_be_resumed(store: RoundStore) -> None:
    save(store, 1, resume=False)
    with pytest.raises(CheckpointError, match="can be exported, but not resumed"):
        store.latest().load()


def test_nothing_there(store: RoundStore) -> None:
    found = store.latest()
    assert (found.round, found.path, found.rejected) == (None, None, [])
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        found.load()
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*round_001"):
        load_checkpoint(store.path(1))


class _Code:
    """Runs code when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_code_in_a_file_is_not_run(tmp_path: Path, save: Any) -> None:
    path, marker = tmp_path / "round_001_checkpoint.pt", tmp_path / "ran"
    save({"round": 1, "model": _Code(marker)}, path)
    with pytest.raises(
        CheckpointError, match=r"round_001_checkpoint\.pt.*(not loaded|no PyTorch file)"
    ):
        load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list"),
        ({"round": 1, "config": {}}, "format_version, federated_metrics, model missing"),
        (
            {
                "format_version": 2,
                "round": 1,
                "federated_metrics": {},
                "config": {},
                "model": {"w": torch.ones(1)},
            },
            "version 2",
        ),
        (
            {
                "format_version": 1,
                "round": 1,
                "federated_metrics": {},
                "config": {},
                "model": {"w": 1},
            },
            "state dict",
        ),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=rf"other\.pt.*{message}"):
        load_checkpoint(tmp_path / "other.pt")


def test_sidecar_taken_for_the_checkpoint(store: RoundStore) -> None:
    save(store, 1)
    with pytest.raises(
        CheckpointError,
        match=r"round_001_resume\.pt is no round checkpoint.*name a round_NNN_checkpoint\.pt",
    ):
        load_checkpoint(store.folder / "round_001_resume.pt")


def test_finding_the_checkpoint(
    tmp_path: Path, store: RoundStore, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = save(store, 1), save(store, 2)
    assert find_checkpoint(first) == first
    assert find_checkpoint(store.folder) == find_checkpoint(tmp_path) == second
    flip(second, 0.3)
    assert find_checkpoint(tmp_path) == first
    assert "round_002_checkpoint.pt is damaged" in caplog.text
    with pytest.raises(CheckpointError, match="nowhere is neither"):
        find_checkpoint(tmp_path / "nowhere")
