"""Whole federations on generated audio: ``fedhubert train`` as a user runs it, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Train = Callable[..., subprocess.CompletedProcess[str]]

SMALL = [
    "model.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    "model.embed_dim=32",
    "model.ffn_dim=64",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.dropout=0.1",
    "model.layer_drop=0.1",
    "model.pos_conv_kernel=16",
    "model.pos_conv_groups=4",
    "data.partition.kind=speaker",
    "data.min_seconds=0.5",
    "data.max_seconds=1.5",
    "data.batch_seconds=3",
    "targets.num_clusters=8",
    "targets.max_iterations=3",
    "federated.num_clients=3",
    "federated.num_rounds=3",
    "client.local_steps=2",
    "checkpoint.every=1",
]


@pytest.fixture(scope="session")
def manifest(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manifest") / "tones.csv"
    command = ["prepare", "folder", "--root", str(tone_folder), "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "fedhubert.cli", *command], check=True, capture_output=True
    )
    return out


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The test's own cache folder, so that no state of the machine's user is seen or left."""
    return {**os.environ, "FEDHUBERT_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def command(manifest: Path, tone_folder: Path) -> Callable[..., list[str]]:
    def build(out: Path, *overrides: str) -> list[str]:
        data = [f"data.manifest={manifest}", f"data.root={tone_folder}", f"out={out}"]
        return [
            sys.executable,
            "-m",
            "fedhubert.cli",
            "train",
            "experiment=demo_fedavg",
            *data,
            *SMALL,
            *overrides,
        ]

    return build


@pytest.fixture(scope="session")
def train(command: Callable[..., list[str]], environment: dict[str, str]) -> Iterator[Train]:
    def run(out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(out, *overrides), env=environment, capture_output=True, text=True, timeout=300
        )

    yield run


@pytest.fixture(scope="session")
def finished(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went through undisturbed: three clients on three nodes, two workers."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = train(out)
    assert done.returncode == 0, done.stderr
    return out


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
