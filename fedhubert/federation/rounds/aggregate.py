"""From replies to one mean update: what must hold of a reply, and where the updates of a round are
gathered."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.clients import Metrics
from fedhubert.config import FederatedConfig
from fedhubert.federation.rounds.drift import drift_of
from fedhubert.federation.rounds.limits import Contribution, HeldBack, RoundLimits
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.sketching import RoundSketches, cosines_to, sketches_in
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.updates.clipping import clipped, norm_in_double
from fedhubert.federation.updates.codecs import VALUES, decode
from fedhubert.federation.updates.exact_sum import (
    GRID,
    ExactSum,
    PartialSum,
    UpdateRejected,
    magnitude_of,
)
from fedhubert.federation.updates.ring import Ring, of_ring, unpack
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Trained
from fedhubert.federation.wire.protocol import Reply
from fedhubert.training.parameters import ParameterLayout, tensor_of

log = logging.getLogger("fedhubert")

_NORM_DIGITS = 1e-5
"""What norms of six digits can add up to beyond the truth, several times over."""


class RoundFold:
    """Gathers the updates of one round: as a running exact sum, or one by one where the strategy
    has to see them all.

    Args:
        config: The strategy, its weights and its codec.
        momentum: Of the clients' SGD, which the strategy may have to know.
        layout: The parameters that an update is of.
        model: The round's model [P].
        outcome: Filled in as replies come.
        limits: What is believed of the replies.
        clip_norm: Updates longer than this are scaled down to it, and count one each (differential
            privacy); None: as they are.
        total: The sum of the updates accepted, cleared here; of no entry where the strategy has to
            see them all.
        seed: The run's, from which sketches draw their signs.
        ring: Of the updates' codec; None: it has none.
    """

    def __init__(
        self,
        config: FederatedConfig,
        momentum: float,
        layout: ParameterLayout,
        model: torch.Tensor,
        outcome: RoundOutcome,
        limits: RoundLimits,
        clip_norm: float | None = None,
        *,
        total: ExactSum,
        seed: int,
        ring: Ring | None = None,
    ) -> None:
        self._config, self._momentum, self._layout, self._model = config, momentum, layout, model
        self._strategy = strategy_of(config)
        self._outcome, self._limits, self._clip_norm = outcome, limits, clip_norm
        self._held = HeldBack(limits.most_held)
        self._ring, self._unit = ring, GRID if ring is None else ring.unit
        self.total = total
        total.clear(self._unit)
        self._updates: dict[int, tuple[torch.Tensor, int]] = {}
        self._seed = seed
        self._sketches: RoundSketches = {}
        self._shares: Mapping[int, list[int]] = {}

    def expect(self, shares: Mapping[int, list[int]]) -> None:
        """Say who is asked now: node id -> partitions."""
        self._shares = shares

    def add(self, reply: Reply[Trained]) -> None:
        """Take in a reply; anything wrong with it becomes a failure of the clients that the node
        was asked for."""
        outcome = self._outcome
        asked = self._shares.get(reply.node_id, [])
        outcome.bytes_up += reply.num_bytes
        named = {
            failure.partition: failure for failure in reply.failures if failure.partition in asked
        }
        whole = next((failure for failure in reply.failures if failure.partition < 0), None)
        code = whole.code if whole else "no_result"
        accepted: set[int] = set()
        answer = reply.answer
        if answer is not None and answer.metrics and not whole:
            try:
                self._check(answer, set(asked) - set(named) - set(outcome.clients), len(asked))
                sketches: RoundSketches = {}
                if self._clip_norm is None:  # with differential privacy none is looked at
                    sketches = sketches_in(answer, self._layout.numel)
                clients = {
                    partition: dict(metrics) for partition, metrics in answer.metrics.items()
                }
                contribution = self._read(answer, clients)
                if not self._limits.holds_back:
                    self._add(contribution)
            except UpdateRejected as rejected:
                code = f"update_{rejected.reason}"
            except (KeyError, TypeError, ValueError, OverflowError):
                # whatever a reply does to our arithmetic fails its clients, and never the run
                code = "malformed"
            else:
                # only now: whoever is refused above leaves no figures behind either
                outcome.clients.update(clients)
                accepted = set(clients)
                self._sketches.update(sketches)
                if self._limits.holds_back:
                    self._hold(contribution)
                outcome.bytes_up_fp32 += 4 * (
                    self._layout.numel * len(accepted) + sum(map(len, sketches.values()))
                )
        others = sorted(set(asked) - set(named) - accepted)
        outcome.failures += [
            *named.values(),
            *(Failure(partition, code, whole.setting if whole else "") for partition in others),
        ]

    def mean(self) -> torch.Tensor:
        """Return the mean update [P] of the clients accepted; raises ``ValueError`` without any."""
        clients = self._outcome.clients
        if self._strategy.needs_every_update:
            mean = self._strategy.combine(self._model, self._updates)
            self._outcome.drift = self._cosines_to(mean)
            return mean
        mean = self.total.mean()
        self._outcome.drift = {
            **drift_of(clients, magnitude_of(mean).norm),
            **self._cosines_to(mean),
        }
        factor = self._strategy.mean_factor(clients, self._momentum)
        return mean if factor == 1.0 else mean.mul_(factor)

    def _cosines_to(self, mean: torch.Tensor) -> dict[str, float]:
        outcome = self._outcome
        return cosines_to(
            mean, self._sketches, outcome.clients, seed=self._seed, number=outcome.number
        )

    def judge(self) -> list[int]:
        """Drop what is longer than so many of the round's medians; return the clients that fell
        with another's update, to be asked again.

        Only in rounds before there are norms of earlier ones: see
        :mod:`fedhubert.federation.rounds.limits`.
        """
        clients, fell = self._outcome.clients, list[int]()
        # without what is dropped the median is another: look again until nothing is too long
        while self._limits.holds_back:
            limit = self._limits.longest(
                float(metrics["update_norm"]) for metrics in clients.values()
            )
            long = {
                p
                for p, metrics in clients.items()
                if limit is not None and float(metrics["update_norm"]) > limit
            }
            dropped = self._held.take(long)
            if not dropped:
                if long:
                    log.warning(
                        "round %d: more long updates than can be held back: clients %s stay",
                        self._outcome.number,
                        sorted(long),
                    )
                break
            for contribution in dropped:
                for partition in contribution.partitions:
                    self._forget(partition)
                    if partition in long:
                        self._outcome.failures.append(Failure(partition, "update_norm"))
                    else:
                        fell.append(partition)
        return sorted(fell)

    def settle(self) -> None:
        """Add what is still held back to the sum: all replies are in."""
        for contribution in self._held.take_all():
            self._add_late(contribution)

    def _forget(self, partition: int) -> None:
        self._outcome.clients.pop(partition, None)
        self._sketches.pop(partition, None)
        self._updates.pop(partition, None)

    def _hold(self, contribution: Contribution) -> None:
        late = self._held.push(contribution)
        if late is not None:
            self._add_late(late)

    def _add_late(self, contribution: Contribution) -> None:
        try:
            self._add(contribution)
        except UpdateRejected as rejected:
            for partition in contribution.partitions:
                self._forget(partition)
                self._outcome.failures.append(Failure(partition, f"update_{rejected.reason}"))

    def _check(self, answer: Trained, expected: set[int], asked: int) -> None:
        if answer.round != self._outcome.number:
            raise UpdateRejected("round")
        if answer.layout != self._layout.fingerprint:
            raise UpdateRejected("layout")
        if not set(answer.metrics) <= expected:
            raise UpdateRejected("partition")
        # a "sum" of one client would go around its codec, and around clipping
        if ("sum" in answer.arrays) != (asked > 1):
            raise UpdateRejected("sum")
        private = self._clip_norm is not None
        for partition, metrics in answer.metrics.items():
            if private and (metrics["weight"] != 1 or "update_unclipped" not in metrics):
                raise UpdateRejected("weight")
            if not 0 <= metrics.get("clipped_entries", 0) <= self._layout.numel:
                raise UpdateRejected("metrics")
            self._limits.check(partition, metrics)

    def _read(self, answer: Trained, clients: dict[int, Metrics]) -> Contribution:
        """Return what the reply adds to the round's sum; what ``clients`` say of an update's norm
        is replaced by what it is."""
        if "sum" in answer.arrays:
            if self._strategy.needs_every_update:
                raise UpdateRejected("sum")
            total = (
                tensor_of(answer.arrays["sum"])
                if self._ring is None
                else self._integers(answer.arrays["sum"], len(clients))
            )
            self._check_sum(total, clients)
            norm = max(float(metrics["update_norm"]) for metrics in clients.values())
            return Contribution(
                norm,
                tuple(sorted(clients)),
                total,
                sum(int(metrics["weight"]) for metrics in clients.values()),
            )
        ((partition, metrics),) = clients.items()
        weight = int(metrics["weight"])
        if self._ring is None:
            values = update = decode(self._config.update_codec, answer.arrays, self._layout.shapes)
            if self._clip_norm is not None:
                # whatever the client did, and its codec made of it
                values = update = clipped(update, self._clip_norm)[0]
        else:
            values = self._integers(answer.arrays.get(VALUES), 1)
            if (
                self._clip_norm is not None
                and norm_in_double(values) * self._unit > weight * self._clip_norm
            ):
                raise UpdateRejected("norm")  # shorter would be other integers
            update = of_ring(values, weight, self._ring)
            values = update if self._strategy.needs_every_update else values
        magnitude = magnitude_of(update)
        metrics["update_norm"] = magnitude.norm  # our own figure, whatever the client says
        if not np.isfinite(metrics["update_norm"]):
            raise UpdateRejected("not_finite")
        if self._limits.norm is not None and magnitude.norm > self._limits.norm:
            raise UpdateRejected("norm")
        metrics.update(self._limits.check_momenta(update, self._layout))
        return Contribution(magnitude.norm, (partition,), values, weight, magnitude)

    def _integers(self, array: npt.NDArray[Any] | None, updates: int) -> torch.Tensor:
        """Return the integers [P] of the sum of so many updates on the ring."""
        assert self._ring is not None
        integers = unpack(array, self._ring.bits, self._layout.numel)
        if integers.numel() and int(integers.abs().max()) > updates * self._ring.largest:
            raise UpdateRejected("range")
        return integers

    def _check_sum(self, total: torch.Tensor, clients: Mapping[int, Metrics]) -> None:
        """Raise :class:`UpdateRejected` for a sum that is longer than its clients' updates, of the
        norms that they state, can add up to."""
        if total.shape != (self._layout.numel,) or total.dtype != torch.int64:
            raise UpdateRejected("shape")
        norm, weight = (
            norm_in_double(total),
            sum(int(metrics["weight"]) for metrics in clients.values()),
        )
        if self._clip_norm is not None and norm > weight * self._clip_norm / self._unit:
            raise UpdateRejected("norm")  # its node has not clipped
        stated = math.fsum(
            int(metrics["weight"]) * float(metrics["update_norm"]) for metrics in clients.values()
        )
        # half a step of the grid in every entry, twice over
        rounding = len(clients) * math.sqrt(total.numel())
        if norm > stated * (1.0 + _NORM_DIGITS) / self._unit + rounding:
            raise UpdateRejected("norm")

    def _add(self, contribution: Contribution) -> None:
        if self._strategy.needs_every_update:
            (partition,) = contribution.partitions
            self._updates[partition] = (contribution.values, contribution.weight)
        elif contribution.values.dtype == torch.int64:
            self.total.merge(PartialSum(contribution.values, contribution.weight))
        else:
            self.total.add(contribution.values, contribution.weight, contribution.magnitude)
