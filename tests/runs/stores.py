"""A store of rounds, and what is saved to it."""

from pathlib import Path

import pytest
import torch

from fedhubert.runs.store import RoundStore


def save(store: RoundStore, number: int, *, size: int = 1000, resume: bool = True) -> Path:
    state = {"weight": torch.full((size,), float(number)), "bias": torch.arange(3.0)}
    kept = {"m": torch.full((size,), 0.5 + number), "positions": {"3": 7}} if resume else None
    return store.save(
        number,
        state,
        config={"seed": 1, "model": {"betas": [0.9, 0.98]}},
        federated_metrics={"loss": 2.5},
        resume=kept,
    )


@pytest.fixture
def store(tmp_path: Path) -> RoundStore:
    return RoundStore(tmp_path / "checkpoints")


def names(store: RoundStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
