"""From replies to one mean update: what must hold of a reply, and where the updates of a round are gathered."""

import math
from collections.abc import Mapping

import numpy as np
import torch

from fedhubert.clients import Metrics
from fedhubert.config import FederatedConfig
from fedhubert.federation.rounds.figures import check_figures
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.updates.clipping import clipped, norm_in_double
from fedhubert.federation.updates.codecs import decode
from fedhubert.federation.updates.exact_sum import GRID_BITS, MAX_WEIGHT, ExactSum, PartialSum, UpdateRejected, measure
from fedhubert.federation.updates.sketches import Sketch, sketch_of, sketch_width, sketched_cosine
from fedhubert.federation.wire.messages import Failure, Trained
from fedhubert.federation.wire.protocol import Reply
from fedhubert.objectives.spec import ObjectiveSpec
from fedhubert.training.parameters import ParameterLayout, tensor_of


def drift_of(clients: Mapping[int, Metrics], mean_norm: float) -> dict[str, float]:
    """Return how far the clients' updates u_i, of weights w_i and mean m of norm ``mean_norm``, point apart.

    ``update_norm`` is the weighted mean of |u_i|, ``mean_update_norm`` is |m|. ``pairwise_cosine`` is the mean cosine of two clients' updates, pairs
    weighted by w_i |u_i| w_j |u_j|. It follows from norms, since |sum w_i u_i|^2 - sum w_i^2 |u_i|^2 is the sum of w_i w_j <u_i, u_j> over pairs;
    so no update has to be kept, or looked at twice. It is left out where there is no pair.
    """
    ordered = [clients[partition] for partition in sorted(clients)]
    total = math.fsum(float(client["weight"]) for client in ordered)
    lengths = [float(client["weight"]) / total * float(client["update_norm"]) for client in ordered]
    mean_length, own = math.fsum(lengths), math.fsum(length**2 for length in lengths)
    drift = {"update_norm": mean_length, "mean_update_norm": mean_norm}
    pairs = mean_length**2 - own
    if len(lengths) > 1 and pairs > 1e-9 * own:  # else all but one are zero
        drift["pairwise_cosine"] = (mean_norm**2 - own) / pairs
    return drift


class RoundFold:
    """Gathers the updates of one round: as a running exact sum, or one by one where the strategy has to see them all.

    Args:
        config: The strategy, its weights and its codec.
        momentum: Of the clients' SGD, which the strategy may have to know.
        layout: The parameters that an update is of.
        model: The round's model [P].
        outcome: Filled in as replies come.
        norm_limit: Updates longer than this are rejected; None: no limit yet.
        clip_norm: Updates longer than this are scaled down to it, and count one each (differential privacy); None: as they are.
        total: The sum of the updates accepted, cleared here; of no entry where the strategy has to see them all.
        objective: What clients train, and score.
        seed: The run's, from which sketches draw their signs.
    """

    def __init__(
        self,
        config: FederatedConfig,
        momentum: float,
        layout: ParameterLayout,
        model: torch.Tensor,
        outcome: RoundOutcome,
        norm_limit: float | None,
        clip_norm: float | None = None,
        *,
        total: ExactSum,
        objective: ObjectiveSpec,
        seed: int,
    ) -> None:
        self._config, self._momentum, self._layout, self._model = config, momentum, layout, model
        self._strategy = strategy_of(config)
        self._outcome, self._norm_limit, self._clip_norm = outcome, norm_limit, clip_norm
        self._objective = objective
        self.total = total
        total.clear()
        self._updates: dict[int, tuple[torch.Tensor, int]] = {}
        self._seed = seed
        self._sketches: dict[int, Sketch] = {}
        self._shares: Mapping[int, list[int]] = {}

    def expect(self, shares: Mapping[int, list[int]]) -> None:
        """Say who is asked now: node id -> partitions."""
        self._shares = shares

    def add(self, reply: Reply[Trained]) -> None:
        """Take in a reply; anything wrong with it becomes a failure of the clients that the node was asked for."""
        outcome = self._outcome
        asked = self._shares.get(reply.node_id, [])
        outcome.bytes_up += reply.num_bytes
        named = {failure.partition: failure for failure in reply.failures if failure.partition in asked}
        whole = next((failure for failure in reply.failures if failure.partition < 0), None)
        code = whole.code if whole else "no_result"
        accepted: set[int] = set()
        answer = reply.answer
        if answer is not None and answer.metrics and not whole:
            try:
                self._check(answer, set(asked) - set(named) - set(outcome.clients))
                sketches = self._sketches_in(answer)
                clients = {partition: dict(metrics) for partition, metrics in answer.metrics.items()}
                self._fold(answer, clients)
            except UpdateRejected as rejected:
                code = f"update_{rejected.reason}"
            except (KeyError, TypeError, ValueError, OverflowError):
                code = "malformed"
            else:
                outcome.clients.update(clients)
                accepted = set(clients)
                self._sketches.update(sketches)
                outcome.bytes_up_fp32 += 4 * (self._layout.numel * len(accepted) + sum(map(len, sketches.values())))
        others = sorted(set(asked) - set(named) - accepted)
        outcome.failures += [*named.values(), *(Failure(partition, code, whole.setting if whole else "") for partition in others)]

    def mean(self) -> torch.Tensor:
        """Return the mean update [P] of the clients accepted; raises ``ValueError`` without any."""
        clients = self._outcome.clients
        if self._strategy.needs_every_update:
            mean = self._strategy.combine(self._model, self._updates)
            self._outcome.drift = self._cosines_to(mean)
            return mean
        mean = self.total.mean()
        self._outcome.drift = {**drift_of(clients, measure(mean).norm), **self._cosines_to(mean)}
        factor = self._strategy.mean_factor(clients, self._momentum)
        return mean if factor == 1.0 else mean.mul_(factor)

    def _cosines_to(self, mean: torch.Tensor) -> dict[str, float]:
        """Add to the clients' figures how far each one's update points to where ``mean`` does, by their sketches; return mean and least of it."""
        clients, found = self._outcome.clients, []
        whole = sketch_of(mean, self._seed, self._outcome.number) if self._sketches else None
        for partition, sketch in sorted(self._sketches.items()):
            cosine = None if whole is None else sketched_cosine(sketch, whole)
            if cosine is not None:
                clients[partition]["cosine_to_mean"] = cosine
                found.append(cosine)
        return {"cosine_to_mean": math.fsum(found) / len(found), "lowest_cosine_to_mean": min(found)} if found else {}

    def _sketches_in(self, answer: Trained) -> dict[int, Sketch]:
        """Return what a reply has of sketches, by partition; with differential privacy none is looked at."""
        sketches = answer.arrays.get("sketches")
        if sketches is None or self._clip_norm is not None:
            return {}
        shape = (len(answer.metrics), sketch_width(self._layout.numel))
        if sketches.dtype != np.float32 or sketches.shape != shape or not np.isfinite(sketches).all():
            raise UpdateRejected("sketch")
        return {partition: np.array(sketch, np.float32) for partition, sketch in zip(answer.metrics, sketches, strict=True)}

    def _check(self, answer: Trained, expected: set[int]) -> None:
        if answer.round != self._outcome.number:
            raise UpdateRejected("round")
        if answer.layout != self._layout.fingerprint:
            raise UpdateRejected("layout")
        if not set(answer.metrics) <= expected:
            raise UpdateRejected("partition")
        private = self._clip_norm is not None
        for metrics in answer.metrics.values():
            try:
                check_figures(metrics, self._objective)
            except ValueError:
                raise UpdateRejected("metrics") from None
            if private and (metrics["weight"] != 1 or "update_unclipped" not in metrics):
                raise UpdateRejected("weight")
            if not 1 <= int(metrics["weight"]) <= MAX_WEIGHT:
                raise UpdateRejected("weight")
            if not all(1 <= int(metrics[name]) < 2**31 for name in ("train_steps", "train_micro_batches")):
                raise UpdateRejected("metrics")
            self._check_norm(float(metrics["update_norm"]))

    def _check_norm(self, norm: float) -> None:
        if self._norm_limit is not None and norm > self._norm_limit:
            raise UpdateRejected("norm")

    def _fold(self, answer: Trained, clients: dict[int, Metrics]) -> None:
        """Take in the update, or the sum, of ``clients``; what they say of an update's norm is replaced by what it is."""
        if "sum" in answer.arrays:
            if self._strategy.needs_every_update:
                raise UpdateRejected("sum")
            weight = sum(int(metrics["weight"]) for metrics in clients.values())
            total = tensor_of(answer.arrays["sum"])
            if self._clip_norm is not None and norm_in_double(total) > weight * self._clip_norm * 2.0**GRID_BITS:
                raise UpdateRejected("norm")  # its node has not clipped
            if answer.bound is None:
                raise UpdateRejected("range")
            self.total.merge(PartialSum(total, weight, answer.bound))
            return
        ((partition, metrics),) = clients.items()
        update = decode(self._config.update_codec, answer.arrays, self._layout.shapes)
        if self._clip_norm is not None:
            update, _ = clipped(update, self._clip_norm)  # whatever the client did, and its codec made of it
        magnitude = measure(update)
        metrics["update_norm"] = magnitude.norm  # our own figure, whatever the client says
        if not np.isfinite(metrics["update_norm"]):
            raise UpdateRejected("not_finite")
        self._check_norm(metrics["update_norm"])
        if self._strategy.needs_every_update:
            self._updates[partition] = (update, int(metrics["weight"]))
        else:
            self.total.add(update, int(metrics["weight"]), magnitude)
