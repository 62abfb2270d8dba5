"""A federation of which only the network and the training are played: messages and the rounds are the real ones."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedhubert.cli import main
from fedhubert.compose import compose, names_experiment
from fedhubert.federation.privacy.accounting import Ledger
from fedhubert.federation.privacy.mechanism import CentralPrivacy
from fedhubert.federation.privacy.secret import Secret
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.rounds.loop import run_rounds
from fedhubert.federation.rounds.shared import RoundResult, Rounds
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.training.parameters import ParameterLayout
from tests.finetuning import write_words
from tests.flower import identify, said_by

from .signed import Keys, make_keys

ABOUT = {
    "train_utterances": 40,
    "validation_utterances": 10,
    "train_audio_s": 200.0,
    "validation_audio_s": 50.0,
    "batches_per_epoch": 4,
}
"""What the site of every client has described."""
LAYOUT = ParameterLayout(("weight", "bias"), ((2, 2), (1,)))
NUMEL = LAYOUT.numel

Answer = Callable[[int, dict[str, Any]], Message | None]


@pytest.fixture(autouse=True)
def app_identity() -> None:
    """Flower sets this when it starts an app."""
    identify()


@pytest.fixture(scope="session")
def data(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tones, by overrides."""
    manifest = tmp_path_factory.mktemp("manifest") / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    return [f"data.manifest={manifest}", f"data.root={tone_folder}"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of spoken words, with a text and a label each."""
    return write_words(tmp_path_factory.mktemp("words"))


def reply(node: int, update: Any = None, **changes: Any) -> Message:
    """The reply of node 100 + p, which trains partition p: by default an update of p + 1 everywhere, weight 10."""
    request = Message(RecordDict(), node, "train.round")
    update = np.full(NUMEL, node - 99, np.float32) if update is None else update
    norm = (
        float(np.linalg.norm(update.astype(np.float64))) if isinstance(update, np.ndarray) else 1.0
    )
    values = {
        "partition": node - 100,
        "weight": 10,
        "train_micro_batches": 4,
        "train_steps": 4,
        "update_norm": norm,
    }
    values |= {
        "train_audio_s": 1.0,
        "train_cross_entropy_sum": 30.0,
        "train_masked_frames": 10,
        "train_correct": 1,
    }
    values |= {"round": 1, "layout": LAYOUT.fingerprint} | changes
    if not math.isfinite(values["update_norm"]):
        values["update_norm"] = 1.0  # what a client that hides it would say
    info = {"round": values.pop("round"), "layout": values.pop("layout")}
    partition = values.pop("partition")
    sketches = values.pop("sketches", None)
    arrays = {"update": update} if sketches is None else {"update": update, "sketches": sketches}
    message = protocol.reply_of(request, metrics={partition: values}, arrays=arrays, info=info)
    return said_by(node, message)


@dataclass
class PlayedGrid:
    """Nodes 100, 101, ... that answer after a number of polls; ``answer`` makes a reply, or None for a node that never does."""

    answer: Answer
    nodes: list[int]
    delays: dict[int, int] = field(default_factory=dict)
    asked: list[tuple[int, int, list[int]]] = field(default_factory=list)
    waiting: dict[str, list[Any]] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: list[Message]) -> list[str]:
        (message,) = messages
        node = message.metadata.dst_node_id
        task = json.loads(str(message.content.config_records["request"]["task"]))
        self.asked.append((task.get("round", 0), node, task["partitions"]))
        self.tasks.append(task)
        name = f"{len(self.asked)}"
        self.waiting[name] = [self.delays.get(node, 0), self.answer(node, task)]
        return [name]

    def pull_messages(self, ids: list[str]) -> Iterator[Message]:
        (name,) = ids
        left, answer = self.waiting[name]
        if answer is not None:
            self.waiting[name][0] -= 1
            if left <= 0:
                del self.waiting[name]
                yield answer


class Played:
    """The rounds of a run over a played grid."""

    def __init__(
        self,
        overrides: list[str],
        answer: Answer | None = None,
        journal: Journal | None = None,
        secret: bytes = bytes(32),
    ) -> None:
        start = [] if names_experiment(overrides) else ["experiment=demo_fedavg"]
        self.config = compose([*start, "client.local_steps=8", *overrides])
        count = self.config.federated.num_clients
        played: Answer = answer or (lambda node, task: reply(node, round=task["round"]))
        self.grid = PlayedGrid(played, [100 + number for number in range(count)])
        self.federation = Federation(StreamingGrid(self.grid), self.config, "run", LAYOUT)  # type: ignore[arg-type]
        self.federation.hosts = {100 + number: [number] for number in range(count)}
        self.federation.partitions = {number: dict(ABOUT) for number in range(count)}
        optimizer = strategy_of(self.config.federated, LAYOUT)
        self.privacy = None
        if self.config.privacy.enabled:
            ledger = Ledger(
                self.config.federated.client_fraction,
                self.config.privacy.noise_multiplier,
                releases=journal.releases if journal else dict,
            )
            self.privacy = CentralPrivacy(self.config, Secret(secret), ledger)
        self.rounds = Rounds(
            self.federation, optimizer, state=RoundState(), journal=journal, privacy=self.privacy
        )
        self.models = [np.zeros(NUMEL, np.float32)]
        self.outcomes: list[Any] = []

    def run(self, num_rounds: int, timeout_s: float = 5.0) -> np.ndarray[Any, Any]:
        """Play so many more rounds and return the last model; ``models`` and ``outcomes`` have one entry per round."""

        def after(result: RoundResult, started: float) -> str:
            self.models.append(result.model.numpy().copy())
            self.outcomes.append(result.outcome)
            return ""

        patient = self.config.federated.model_copy(update={"round_timeout_s": timeout_s})
        self.federation.config = self.config.model_copy(update={"federated": patient})
        first = len(self.outcomes) + 1
        run_rounds(
            self.rounds,
            torch.from_numpy(self.models[-1].copy()),
            first,
            first + num_rounds - 1,
            after,
        )
        return self.models[-1]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))
