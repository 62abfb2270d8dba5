"""What a federation would do and take: its rounds played with numbers alone.

Cohorts, nodes, steps, micro-batches and bytes are those of the run; what takes time is one of
:class:`~fedhubert.planning.inputs.Rates`. Nobody fails, and all devices are alike.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from fedhubert.federation.engine.simulation import num_supernodes
from fedhubert.federation.roster.sampling import asking_order, assign_to_nodes
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.planning import privacy, secure, sizes
from fedhubert.planning.inputs import Inputs


@dataclass
class Share:
    """A client's part of the run: rounds in which its update counted, their steps and audio; its
    device's busy seconds, scoring included; its part of its node's messages."""

    rounds: int = 0
    steps: int = 0
    audio_s: float = 0.0
    device_s: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0


@dataclass(frozen=True)
class Round:
    """A round: steps of its longest client, bytes of arrays as ``metrics.jsonl`` has them, seconds
    until enough clients have answered, and in all."""

    steps: int
    bytes_down: int
    bytes_up: int
    clients_s: float
    seconds: float


@dataclass(frozen=True)
class RunPlan:
    """The estimates.

    Attributes:
        labels_s, final_s: Before the first round and after the last: making the labels (clustering,
            which sees a sample, is not counted), and scoring the final model everywhere.
        server_s: The server's own work, in all rounds.
        warnings: What would go wrong, and what to do about it.
    """

    rounds: tuple[Round, ...]
    shares: tuple[Share, ...]
    labels_s: float
    final_s: float
    server_s: float
    warnings: tuple[str, ...]

    @property
    def steps_in_a_row(self) -> int:
        """Steps that the model takes one after the other: each round counts once."""
        return sum(part.steps for part in self.rounds)

    @property
    def seconds(self) -> float:
        """Wall time of the run."""
        return self.labels_s + math.fsum(part.seconds for part in self.rounds) + self.final_s


@dataclass(frozen=True)
class _Work:
    """What a client would do in a round."""

    steps: int
    micro_batches: int
    audio_s: float
    device_s: float


def plan(inputs: Inputs) -> RunPlan:
    """Play the rounds of ``inputs``.

    In a simulation nodes take the next free of ``simulation.num_workers`` workers, in the order in
    which they are asked. With differential privacy a round has the expected number of clients: its
    cohort is secret.
    """
    return _Planner(inputs).plan()


class _Planner:
    def __init__(self, inputs: Inputs) -> None:
        self._inputs, self._rates, self._config = inputs, inputs.rates, inputs.config
        count = len(inputs.clients)
        nodes = count if self._rates.on_sites else num_supernodes(self._config)
        self._cohort = inputs.config.federated.clients_per_round
        self._secure = inputs.config.secure.enabled
        self._down = sizes.model_bytes(inputs)
        self._down += secure.terms_bytes(self._cohort) if self._secure else 0
        self._up = cache(lambda clients: sizes.reply_bytes(inputs, clients))
        self._hosts: Mapping[int, Sequence[int]] = {
            node: [node] if nodes == count else range(count) for node in range(nodes)
        }
        self._load = {number: client.train_s for number, client in enumerate(inputs.clients)}
        self._step_flop = strategy_of(self._config.federated).step_flop(inputs.layout)
        self._positions = [0] * count
        self._shares = [Share() for _ in range(count)]
        self._late: dict[int, int] = {}  # client -> the first round in which it would be too late
        self._server_s = 0.0

    def plan(self) -> RunPlan:
        rounds = tuple(
            self._round(number) for number in range(1, self._config.federated.num_rounds + 1)
        )
        for share, client in zip(self._shares, self._inputs.clients, strict=True):
            share.device_s += client.scored_at_end_s / self._rates.scoring
        return RunPlan(
            rounds,
            tuple(self._shares),
            self._labels_s(),
            self._final_s(),
            self._server_s,
            (*strategy_of(self._config.federated).warnings(self._config), *self._warnings()),
        )

    def _round(self, number: int) -> Round:
        federated, rates = self._config.federated, self._rates
        wanted = (
            max(1, round(federated.expected_cohort))
            if self._config.privacy.central
            else federated.clients_per_round
        )
        asked = asking_order(self._config, number)[: math.ceil(wanted * federated.over_commit)]
        shares = assign_to_nodes(asked, self._hosts, self._load)
        work = {part: self._work(part, number) for part in asked}
        down, up = self._down, {node: self._up(len(parts)) for node, parts in shares.items()}
        device_s = {
            node: math.fsum(work[part].device_s for part in parts) for node, parts in shares.items()
        }
        lines_s = {node: rates.line_s(down, up[node]) for node in shares}
        finished = self._finished({node: device_s[node] + lines_s[node] for node in shares})
        heard: list[int] = []
        accepted: list[int] = []
        for node in sorted(shares, key=lambda node: finished[node]):
            if len(accepted) < wanted:  # over-committed: the others are not waited for
                heard.append(node)
                accepted += shares[node]
        for node, parts in shares.items():
            for part in parts:
                share = self._shares[part]
                share.device_s += work[part].device_s
                share.bytes_down += down // len(parts)
                share.bytes_up += up[node] // len(parts) * (node in heard)
                if finished[node] > federated.round_timeout_s:
                    self._late.setdefault(part, number)
        for part in accepted:
            share, done = self._shares[part], work[part]
            share.rounds, share.steps, share.audio_s = (
                share.rounds + 1,
                share.steps + done.steps,
                share.audio_s + done.audio_s,
            )
            self._positions[part] += done.micro_batches
        clients_s = max(finished[node] for node in heard)
        server_s = 1e-9 * self._inputs.numel * (rates.fold_ns * len(heard) + rates.step_ns)
        server_s += 1e-3 * rates.client_ms * len(asked)
        passed_on_s = rates.passed_on_s(down * len(shares) + sum(up[node] for node in heard))
        server_s += max(0.0, passed_on_s - min(lines_s.values()))
        server_s += 1e-9 * self._step_flop / rates.server_gflop_s
        server_s += 1e-6 * sizes.written(self._inputs, number) / rates.disk_mb_s
        server_s += privacy.server_noise_s(self._inputs)
        opening_s = 0.0
        if self._secure:
            server_s += secure.opening_s(self._inputs, len(accepted))
            # one message more, as long as an empty one
            opening_s = rates.overhead_s
            opening_s += rates.line_s(*secure.opening_bytes(self._inputs, len(accepted)))
        self._server_s += server_s
        return Round(
            max(work[part].steps for part in accepted),
            down * len(shares),
            sum(up[node] for node in heard),
            clients_s,
            clients_s + server_s + rates.overhead_s + opening_s,
        )

    def _work(self, part: int, number: int) -> _Work:
        client, settings, position = (
            self._inputs.clients[part],
            self._config.client,
            self._positions[part],
        )
        steps = settings.steps_per_round(client.num_batches)
        audio_s = client.audio_s(range(position, position + steps * settings.accumulate))
        rate = self._inputs.training
        in_time = (settings.max_seconds or math.inf) * rate / audio_s
        if in_time < 1.0:
            steps = math.ceil(steps * in_time)
            audio_s = client.audio_s(range(position, position + steps * settings.accumulate))
        scored_s = client.scored_s if settings.scores_in(number) else 0.0
        seconds = audio_s / rate + scored_s / self._rates.scoring
        seconds += secure.masking_s(self._inputs, self._cohort) if self._secure else 0.0
        seconds += privacy.client_noise_s(self._inputs)
        return _Work(steps, steps * settings.accumulate, audio_s, seconds)

    def _finished(self, seconds: Mapping[int, float]) -> dict[int, float]:
        """Return when each node has answered: sites work side by side, a simulation's nodes as
        workers become free."""
        if self._rates.on_sites:
            return dict(seconds)
        free = [0.0] * self._config.simulation.num_workers
        finished = {}
        for node, needed in seconds.items():
            finished[node] = heapq.heappop(free) + needed
            heapq.heappush(free, finished[node])
        return finished

    def _everyone_s(self, client_s: Sequence[float], line_s: float = 0.0) -> float:
        """Return how long it takes that every client works ``client_s``."""
        shares = assign_to_nodes(range(len(client_s)), self._hosts, self._load)
        seconds = {
            node: math.fsum(client_s[part] for part in parts) + line_s
            for node, parts in shares.items()
        }
        return max(self._finished(seconds).values()) + self._rates.overhead_s

    def _labels_s(self) -> float:
        task, targets = self._config.task, self._config.targets
        if not task.needs_labels or targets.kind != "kmeans":
            return 0.0
        rate = self._rates.scoring if targets.of_a_layer else self._rates.label_audio_s_per_s
        return self._everyone_s(
            [(client.train_s + client.validation_s) / rate for client in self._inputs.clients]
        )

    def _final_s(self) -> float:
        line_s = self._rates.line_s(self._down, 0)
        return self._everyone_s(
            [client.scored_at_end_s / self._rates.scoring for client in self._inputs.clients],
            line_s,
        )

    def _warnings(self) -> list[str]:
        if not self._late:
            return []
        number, client = min((number, client) for client, number in self._late.items())
        return [
            f"{len(self._late)} clients would be too late, first client {client} in round "
            f"{number}: raise "
            f"federated.round_timeout_s={self._config.federated.round_timeout_s:g}, or lower "
            "client.local_steps or client.local_epochs"
        ]
