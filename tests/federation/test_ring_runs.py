"""Runs whose updates are integers on a ring: flat, in shards and replayed the same bits, beside float32 what rounding makes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.compose import compose
from fedhubert.errors import FederationError
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.updates.ring import RING_BITS
from fedhubert.formats.round_file import load_checkpoint
from tests.flower import identify

from .clients import SMALL
from .in_process import InProcessGrid

CLIENTS = 3


@pytest.fixture(scope="module")
def settings(data: list[str]) -> list[str]:
    return [
        "experiment=demo_fedavg",
        *SMALL,
        *data,
        "federated.connect_timeout_s=2",
        "federated.num_rounds=2",
        "client.local_steps=1",
        "client.lr=1e-3",
        "data.num_workers=0",
        "checkpoint.every=1",
    ]


def play(settings: list[str], out: Path, nodes: int, *more: str) -> tuple[torch.Tensor, list[Any]]:
    """Train on so many nodes; return the last model as a vector, and the rounds' events."""
    grid = InProcessGrid(
        [
            {
                "partition-id": number,
                "num-partitions": nodes,
                "state-dir": str(out / f"state-{number}"),
            }
            for number in range(nodes)
        ]
    )
    run_federation(grid, compose([*settings, f"out={out}", *more]))
    model = load_checkpoint(out / "checkpoints/round_002_checkpoint.pt")["model"]
    vector = torch.cat([torch.as_tensor(model[name]).flatten().double() for name in sorted(model)])
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return vector, [event for event in map(json.loads, lines) if event["event"] == "round"]


@pytest.fixture(scope="module")
def exact(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    identify()
    return play(settings, tmp_path_factory.mktemp("fp32"), CLIENTS)[0]


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(codec, marks=[] if codec == "ring24" else pytest.mark.slow)
        for codec in sorted(RING_BITS)
    ],
)
def test_flat_and_sharded_are_the_same_bits_and_near_float32(
    settings: list[str], exact: torch.Tensor, tmp_path: Path, codec: str
) -> None:
    more = [f"federated.update_codec={codec}", "federated.ring_clip=0.004"]
    flat, events = play(settings, tmp_path / "flat", CLIENTS, *more)
    sharded, others = play(settings, tmp_path / "sharded", 2, *more)
    assert torch.equal(flat, sharded)
    numel = events[0]["bytes_up_fp32"] // CLIENTS  # with the sketch
    assert events[0]["bytes_up"] < numel * CLIENTS if codec != "ring32" else True
    assert events[0]["clipped_entries"] == others[0]["clipped_entries"] == 0
    allowed = {"ring32": 1e-7, "ring24": 1e-6, "ring16": 1e-4}[codec]
    assert float((flat - exact).norm() / exact.norm()) < allowed


def test_what_is_cut_off_is_reported_and_warned_of(settings: list[str], tmp_path: Path) -> None:
    more = ["federated.update_codec=ring32", "federated.ring_clip=1e-5"]
    _, events = play(settings, tmp_path, CLIENTS, *more)
    assert all(event["clipped_entries"] > 100 for event in events)
    said = (tmp_path / "federated_training.log").read_text()
    assert "beyond federated.ring_clip=1e-05 and were cut off" in said


def test_a_round_that_is_replayed_is_the_same(settings: list[str], tmp_path: Path) -> None:
    """The first round again, from its journal, as after a crash before its checkpoint."""
    more = ["federated.update_codec=ring24", "federated.ring_clip=0.01", "resume=auto"]
    once, _ = play(settings, tmp_path, CLIENTS, *more)
    for number in (1, 2):
        (tmp_path / f"checkpoints/round_00{number}_checkpoint.pt").unlink()
    again, _ = play(settings, tmp_path, 2, *more)
    assert torch.equal(once, again)


@pytest.mark.slow
def test_clipped_updates_stay_within_the_norm_on_the_ring(
    settings: list[str], tmp_path: Path
) -> None:
    """Central privacy: none is refused, flat or in shards, and with as little noise as there may be the mean is that of float32."""
    private = [
        "privacy=central",
        "privacy.clip_norm=0.01",
        "privacy.noise_multiplier=0.001",
        "federated.client_fraction=1",
    ]
    more = [*private, "federated.update_codec=ring32", "federated.ring_clip=0.01"]
    _, flat = play(settings, tmp_path / "flat", CLIENTS, *more)
    _, sharded = play(settings, tmp_path / "sharded", 2, *more)
    for event in (*flat, *sharded):
        assert len(event["clients"]) == CLIENTS and not event["failed"]
        assert all(client["update_norm"] <= 0.01 for client in event["clients"])


def test_integers_beyond_what_one_update_may_have_are_refused(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not cut off could have the sum wrap around."""
    from fedhubert.federation.updates import pipeline

    honest = pipeline.pack

    def lying(integers: torch.Tensor, bits: int) -> np.ndarray[Any, Any]:
        return honest(torch.full_like(integers, 2 ** (bits - 1) - 1), bits)

    monkeypatch.setattr(pipeline, "pack", lying)
    with pytest.raises(FederationError, match="update_range"):
        play(
            settings,
            tmp_path,
            CLIENTS,
            "federated.update_codec=ring32",
            "federated.round_retries=0",
        )
