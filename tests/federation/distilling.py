"""Distillations in this process, from a teacher of two layers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import incoming
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.runs.store import RoundStore
from tests.integration.conftest import SMALL

from .in_process import InProcessGrid

Run = Callable[..., tuple[RunResult, InProcessGrid]]
ALL = [
    "task.objectives.hints=0.5",
    "task.hints=[[1,1]]",
    "task.objectives.logits=0.5",
    "task.objectives.pseudo_labels=0.5",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretraining run with one checkpoint: two layers, 48 wide, 12 classes."""
    config = compose(
        [
            "experiment=demo_fedavg",
            *SMALL,
            "model.embed_dim=48",
            "model.num_heads=4",
            "model.num_layers=2",
        ]
    )
    run = tmp_path_factory.mktemp("pretrained")
    model = build_hubert(config.model, seed=7)
    RoundStore(run / "checkpoints").save(
        4,
        model.state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )
    return run


@pytest.fixture()
def run(data: list[str], teacher: Path, tmp_path: Path) -> Run:
    def go(
        name: str,
        *overrides: str,
        nodes: int = 3,
        state: str = "state",
        node: dict[str, str | int] | None = None,
    ) -> tuple[RunResult, InProcessGrid]:
        incoming._cached = None  # as in a new process
        configs: list[dict[str, str | int]] = [
            {"partition-id": number, "num-partitions": nodes} for number in range(nodes)
        ]
        configs[0] |= node or {}
        places = [
            f"out={tmp_path / name}",
            f"client.state_dir={tmp_path / state}",
            f"task.teacher={teacher}",
        ]
        task = ["experiment=demo_distill", "task.layers=[1,2]"]
        grid = InProcessGrid(configs)
        return run_federation(grid, compose([*task, *data, *SMALL, *places, *overrides])), grid

    return go


def events(result: RunResult, kind: str) -> list[dict[str, Any]]:
    lines = (result.folder.path / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = load_checkpoint(result.checkpoint)["model"]
    return model


def assert_same(left: RunResult, right: RunResult) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
