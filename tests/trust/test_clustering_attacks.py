"""A site that lies in k-means or of its labels is left out, and the others cluster as if it had
never been."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedhubert.federation.phases.targets import prepare_targets
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire import protocol
from tests.federation.conftest import Played
from tests.federation.second_iteration import NotKept
from tests.flower import said_by

from .liars import FIVE, LIAR

CLUSTERS, WIDTH = 50, 39


def clustering(node: int, task: dict[str, Any], kind: str, factor: int = 1) -> Message:
    """What an honest site, or one that counts ``factor`` times too much, sends in a phase of the targets."""
    rng, partition = np.random.default_rng(node), node - 100
    counts = np.full(CLUSTERS, 100 * factor, np.int64)
    if kind == "train.kmeans_seed":
        points = rng.standard_normal((CLUSTERS, WIDTH)).astype(np.float32)
        arrays = {f"centroids_{partition}": points, f"weights_{partition}": counts}
    elif kind == "train.kmeans_step":
        sums = rng.integers(-1000, 1000, (CLUSTERS, WIDTH)) * (2**20 if factor == 1 else 2**36)
        arrays = {"sums": sums, "counts": counts, "inertia": np.full(CLUSTERS, 2**20)}
    else:
        arrays = {"train": counts, "validation": counts // 10}
    about = {"frames": 5500 * factor} | (
        {"withheld_clusters": 0}
        if "kmeans" in kind
        else {"label_rate_hz": 100, "num_clusters": CLUSTERS}
    )
    return said_by(
        node,
        protocol.reply_of(
            Message(RecordDict(), node, kind), metrics={partition: about}, arrays=arrays
        ),
    )


def targets_of(nodes: list[int], liar: Any = None, phase: str = "") -> tuple[Any, Federation]:
    kinds: dict[str, Any] = {}

    def answer(node: int, task: dict[str, Any]) -> Message | None:
        kind = str(kinds["now"])
        return (
            liar(node, task, kind)
            if node == LIAR and kind == phase
            else clustering(node, task, kind)
        )  # type: ignore[no-any-return]

    overrides = [
        "experiment=demo_fedavg",
        *FIVE,
        "federated.round_retries=1",
        "targets.max_iterations=3",
        "targets.tolerance=0",
    ]
    played = Played(overrides, answer)
    pushed = played.grid.push_messages

    def push(messages: list[Message]) -> list[str]:
        kinds["now"] = messages[0].metadata.message_type
        return pushed(messages)

    played.grid.push_messages = push  # type: ignore[method-assign]
    patient = played.config.federated.model_copy(update={"round_timeout_s": 1.0})
    played.federation.config = played.config.model_copy(update={"federated": patient})
    played.federation.hosts = {node: [node - 100] for node in nodes}
    return prepare_targets(played.federation, (), NotKept(), lambda event: None), played.federation  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["train.kmeans_seed", "train.kmeans_step", "train.label"])
@pytest.mark.parametrize("how", ["too many", "silent", "malformed"])
def test_a_site_that_lies_about_its_frames_is_left_out_and_the_others_cluster_as_if_it_had_never_been(
    phase: str, how: str
) -> None:
    liars = {
        "too many": lambda node, task, kind: clustering(node, task, kind, 2**34 // 100),
        "silent": lambda node, task, kind: None,
        "malformed": lambda node, task, kind: said_by(
            node, protocol.reply_of(Message(RecordDict(), node, kind))
        ),
    }
    targets, federation = targets_of([100, 101, 102, 103, 104], liars[how], phase)
    assert sorted(federation.connected) == [0, 1, 2, 3] and list(federation.left_out) == [4]
    if phase == "train.kmeans_seed":
        alone, _ = targets_of([100, 101, 102, 103])
        assert np.array_equal(targets.centroids[0], alone.centroids[0])
    assert int(targets.train_counts.sum()) == 4 * CLUSTERS * 100
