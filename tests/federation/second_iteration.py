"""Targets over real handlers, without the rounds that follow."""

from typing import Any

import pytest

from fedhubert.federation.phases.targets import prepare_targets
from fedhubert.federation.roster.connect import connect

from .clients import SMALL
from .in_process import InProcessGrid, federation

NODES = 3
Settings = list[str]


@pytest.fixture(scope="module")
def data(data: Settings) -> Settings:
    return [*SMALL, "model.num_layers=3", *data, "data.min_seconds=0.5"]


def nodes(**changes: str | int) -> list[dict[str, str | int]]:
    """Node configurations; ``changes`` are those of node 1."""
    configs: list[dict[str, str | int]] = [
        {"partition-id": number, "num-partitions": NODES} for number in range(NODES)
    ]
    configs[1] |= {key.replace("_", "-"): value for key, value in changes.items()}
    return configs


class NotKept:
    """Progress of k-means that nobody needs."""

    def load(self) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        pass


def run_targets(
    overrides: Settings, configs: list[dict[str, Any]] | None = None
) -> tuple[Any, list[dict[str, Any]], InProcessGrid]:
    run, grid = federation(overrides, configs or nodes())
    connect(run)
    events: list[dict[str, Any]] = []
    return prepare_targets(run, (), NotKept(), events.append), events, grid
