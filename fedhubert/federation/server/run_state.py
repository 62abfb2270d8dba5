"""What a run carries from round to round and over an interruption: the model, and all that resuming
needs beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedhubert.config import Config
from fedhubert.federation.phases.teacher import ServerTeacher
from fedhubert.federation.privacy.mechanism import Mechanism
from fedhubert.federation.privacy.opening import open_privacy
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.server.record import RunRecord
from fedhubert.federation.strategies.strategy import ServerStrategy, strategy_of
from fedhubert.formats.starting import start_from
from fedhubert.models.heads import is_objectives_own, own_heads
from fedhubert.models.hubert import HubertModel
from fedhubert.targets.kmeans import Centroids
from fedhubert.targets.solving import centroids_in, plain_centroids
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.travelling import travelling_model


@dataclass
class RunState:
    """The state of a run between two rounds.

    Attributes:
        strategy: The server's part of the strategy, with its optimiser's state.
        rounds: What the rounds so far leave to the next.
        first_round: The one to go on with, from 1.
        fingerprints: Partition -> what its data hashed to when the run began.
        centroids: float32[K, D] of each set of pseudo-labels; none before there are any.
        targets_key: Names the labels on the sites.
        privacy: The mechanism and what it has spent; None without differential privacy.
        shares_head: Whether the model's head is everybody's; personal ones stay at the sites.
    """

    model: HubertModel
    layout: ParameterLayout
    strategy: ServerStrategy
    rounds: RoundState = field(default_factory=RoundState)
    first_round: int = 1
    fingerprints: dict[int, int] = field(default_factory=dict)
    centroids: Centroids = ()
    targets_key: str = ""
    privacy: Mechanism | None = None
    shares_head: bool = True

    @classmethod
    def initial(cls, config: Config) -> "RunState":
        """Return the state of a run under ``config`` before anything is read or trained."""
        model, layout = travelling_model(config.model, config.task, config.client, config.seed)
        strategy = strategy_of(config.federated, layout.without_momenta)
        return cls(model, layout, strategy, shares_head=config.task.shares_head)

    def restore(self, record: RunRecord, teacher: ServerTeacher | None) -> None:
        """Go on from the newest whole checkpoint of ``record``; where there is none, begin, from
        ``init_from`` if that is set.

        Raises:
            CheckpointError: a folder that holds another run, or a run that is not to be resumed;
                nothing usable at ``init_from``.
            ConfigError: ``dp-accounting`` is missing.
        """
        resumed, config = record.resume(), record.config
        spent = resumed.resume.get("privacy") if resumed else None
        self.privacy = open_privacy(
            config, record.folder.checkpoints, spent, record.journal.releases
        )
        if resumed is None:
            if config.init_from is not None:
                record.lineage.append({"init_from": start_from(self.model, config.init_from)})
            if teacher is not None:
                record.lineage.append({"teacher": dict(teacher.lineage)})
            return
        values = resumed.resume
        kept = {} if self.shares_head else own_heads(self.model)
        self.model.load_state_dict({**kept, **resumed.checkpoint["model"]})
        for name, momentum in values.get("momenta", {}).items():
            if name in self.model.momenta:  # a forked run may train less
                self.model.momenta[name].copy_(momentum)
        # a forked run with another strategy begins with a fresh one
        if values["server_optimizer"] is not None:
            self.strategy.load_state(values["server_optimizer"])
        self.rounds = RoundState.from_plain(values["rounds"])
        self.fingerprints = {int(key): int(value) for key, value in values["fingerprints"].items()}
        self.centroids = centroids_in(values)
        self.targets_key = str(values.get("targets_key", ""))
        self.first_round = resumed.round + 1

    def saved_model(self) -> dict[str, Tensor]:
        """Return the model as checkpoints have it: without a head that nobody has trained here."""
        state = self.model.state_dict()
        if self.shares_head:
            return state
        return {name: tensor for name, tensor in state.items() if not is_objectives_own(name)}

    def to_plain(self) -> Mapping[str, object]:
        """Return what a checkpoint holds beside the model: the inverse of :meth:`restore`."""
        return {
            "server_optimizer": self.strategy.state,
            "momenta": dict(self.model.momenta),
            "targets_key": self.targets_key,
            "rounds": self.rounds.to_plain(),
            "fingerprints": {str(key): value for key, value in self.fingerprints.items()},
            "privacy": self.privacy.to_plain() if self.privacy else None,
            **plain_centroids(self.centroids),
        }
