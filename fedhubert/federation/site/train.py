"""A node's part of a round: score the incoming model, train it on each of its partitions, and send
what came of it."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from fedhubert.clients import Metrics
from fedhubert.clients.data import Site, open_site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.samples import release_extractor
from fedhubert.clients.settings import NodeConfig
from fedhubert.clients.state import PartitionState, StateFolder
from fedhubert.federation.secure.bindings import model_digest
from fedhubert.federation.secure.figures import CLEAR, train_figures, train_names
from fedhubert.federation.site import faults
from fedhubert.federation.site.handling import Answered, each_partition, kept_state, said_of
from fedhubert.federation.site.incoming import Incoming, incoming_model
from fedhubert.federation.site.local_steps import train_partition, training_metrics
from fedhubert.federation.site.masker import Masker, of_the_site, subject_of
from fedhubert.federation.site.outgoing import add_noise, ring_of, sent_update
from fedhubert.federation.site.ranks import train_on_devices
from fedhubert.federation.site.scoring import score
from fedhubert.federation.updates.clipping import clipped
from fedhubert.federation.updates.codecs import EncodedArrays
from fedhubert.federation.updates.exact_sum import (
    GRID,
    ExactSum,
    Magnitude,
    PartialSum,
    UpdateRejected,
    magnitude_of,
)
from fedhubert.federation.updates.pipeline import Outgoing, effective_steps
from fedhubert.federation.updates.ring import RING_BITS, Ring, narrow, pack
from fedhubert.federation.updates.sketches import Sketch, sketch_of
from fedhubert.federation.wire.messages.message import Answer
from fedhubert.federation.wire.messages.rounds import Train, Trained
from fedhubert.federation.wire.protocol import Request
from fedhubert.models.heads import own_heads
from fedhubert.objectives.spec import spec_of
from fedhubert.training.local import LocalResult


def train_round(request: Request[Train], node_config: NodeConfig) -> Answered:
    """Score the incoming model on each partition's validation split, train it on the training
    split, and send the update.

    One partition: its update, encoded. Several: the exact partial sum
    (:mod:`fedhubert.federation.updates.exact_sum`) of their updates as the server would have
    decoded them, each behind the server's own guards. With differential privacy updates are clipped
    before they are encoded, and again, as the server would, after decoding.
    """
    release_extractor()
    job, task = request.job, request.task
    faults.crash_if_drawn(job.faults, job.seed, task.round, task.attempt, task.partitions)
    round_here = _RoundHere.of(request, node_config)
    metrics, failures = each_partition(request, node_config, round_here.train, task.budget_s)
    return round_here.answer(metrics), failures


@dataclass
class _RoundHere:
    """One message's round at a node: its partitions are trained one after the other, and what
    leaves of them is gathered.

    Attributes:
        total: The sum of the updates of several partitions, or the one part of a secure sum that is
            masked next; None: one update leaves by itself.
        ring: Of the updates' codec, if it has one.
        masker: Masks the parts of a secure sum; None: the round is in the clear.
        digest: Names the incoming model in a secure sum.
        arrays, sketches: What leaves in the clear.
    """

    request: Request[Train]
    node_config: NodeConfig
    site: Site
    incoming: Incoming
    ring: Ring | None
    masker: Masker | None
    total: ExactSum | None
    digest: str
    arrays: EncodedArrays = field(default_factory=dict)
    sketches: dict[int, Sketch] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request[Train], node_config: NodeConfig) -> "_RoundHere":
        """Return the round that ``request`` asks for.

        Raises:
            FederationError: the model or the ring does not fit.
            CheckpointError: the teacher is not on this site.
            SecureError: the sum is refused.
        """
        site = open_site(request.job, node_config)
        incoming, task = incoming_model(request, site), request.task
        masker = None
        if task.secure:
            masker = Masker.of(request, node_config, train_names(spec_of(request.job.task)))
        summed = len(task.partitions) > 1 or masker is not None
        total = ExactSum(incoming.vector.numel()) if summed else None
        ring = ring_of(request)
        if total is not None and ring is not None:
            total.clear(ring.unit)
        digest = model_digest(incoming.vector.numpy()) if masker else ""
        return cls(request, node_config, site, incoming, ring, masker, total, digest)

    def train(self, site: Site, partition: Partition) -> Metrics:
        """Score and train one partition, alone with its state; gather what leaves of it."""
        folder = site.state_folder(self.request.run_key, partition.number)
        locked = folder.exclusively() if self.request.job.keeps_state else nullcontext()
        with locked, self.masker.one_code() if self.masker else nullcontext():
            return self._train(site, partition, folder)

    def _train(self, site: Site, partition: Partition, folder: StateFolder) -> Metrics:
        request, number = self.request, partition.number
        job, task = request.job, request.task
        start = said_of(number, task.positions, "positions")
        repeated = self._enter(site, partition, start)
        scored, state = job.client.validation_batches, kept_state(request, folder, number)
        # before it trains: what is scored is the model that came
        metrics = (
            score(request, site, partition, self.incoming, state.head, num_batches=scored)
            if job.client.scores_in(task.round)
            else {}
        )
        result = self._trained(site, partition, state, repeated)
        state.optimizer = result.optimizer_state
        if not job.task.shares_head:
            state.head = own_heads(self.incoming.cached.model)
        weight = self._weight_of(partition, result)
        # what is sent by itself, and what int8 leaves over, keep their memory
        plain = job.update_codec == "fp32"
        room = self.total.room() if self.total is not None and plain else None
        sent = sent_update(request, number, self.incoming, result, state, self.ring, weight, room)
        # before the update leaves: from then on the server may name this version
        self._save_state(folder, number, state)
        update = self._as_the_server_counts_it(sent)
        magnitude = magnitude_of(update)
        metrics |= {
            **training_metrics(result),
            **sent.metrics,
            "weight": weight,
            "update_norm": magnitude.norm,
        }
        if not all(map(math.isfinite, metrics.values())):
            raise UpdateRejected("metrics")
        self._gather(sent, update, weight, magnitude)
        if self.masker is not None:
            metrics = self._mask(self.masker, number, metrics, result, start, weight)
        if job.sends_sketches:
            self.sketches[number] = sketch_of(update, job.seed, task.round)
        faults.wait_if_drawn(job.faults, job.seed, task.round, task.attempt, number)
        return metrics

    def _trained(
        self, site: Site, partition: Partition, state: PartitionState, repeated: int | None
    ) -> LocalResult:
        """Train a partition here, or on several devices of the site."""
        devices = self.request.job.client.devices
        if len(devices) == 1:
            return train_partition(self.request, site, partition, self.incoming, state, repeated)
        return train_on_devices(
            self.request, self.node_config, partition, self.incoming, devices, repeated
        )

    def _enter(self, site: Site, partition: Partition, start: int) -> int | None:
        """Enter a partition into a secure sum; return the micro-batches of an earlier attempt whose
        like is asked for."""
        if self.masker is None:
            return None
        own = of_the_site(self.request, self.node_config, site, partition)
        subject = subject_of(self.request, self.digest, partition.number, own)
        end = self.masker.enter(partition.number, subject)
        return end - start if end >= 0 else None

    def _save_state(self, folder: StateFolder, number: int, state: PartitionState) -> None:
        if self.request.job.keeps_state:
            task = self.request.task
            folder.save(task.round, state)
            before = said_of(number, task.site_rounds, "site_rounds")
            # the version before stays: this round may be asked for again
            folder.prune([task.round, before], task.checkpoints)

    def _weight_of(self, partition: Partition, result: LocalResult) -> int:
        job, limit = self.request.job, self.request.task.weight_limit
        weights = {"frames": result.frames, "utterances": len(partition.train_rows), "uniform": 1}
        weight = weights[job.weight_by]
        return weight if limit is None else min(weight, limit)

    def _as_the_server_counts_it(self, sent: Outgoing) -> torch.Tensor:
        """Return the update [P] as the server decodes it; in a sum clipped again, as it would."""
        clip_norm = self.request.task.clip_norm
        if self.total is None or clip_norm is None or sent.integers is not None:
            return sent.update
        return clipped(sent.update, clip_norm)[0]

    def _gather(
        self, sent: Outgoing, update: torch.Tensor, weight: int, magnitude: Magnitude
    ) -> None:
        """Add an update to what leaves; raises :class:`UpdateRejected`."""
        if self.total is None:
            self.arrays.update(sent.arrays)
            return
        limit = self.request.task.norm_limit
        if limit is not None and magnitude.norm > limit:
            raise UpdateRejected("norm")
        if self.masker is not None:  # each part is masked by itself
            self.total.clear()
        if sent.integers is None:
            self.total.add(update, weight, magnitude)
        else:
            self.total.merge(PartialSum(sent.integers, weight))

    def _mask(
        self,
        masker: Masker,
        number: int,
        metrics: Metrics,
        result: LocalResult,
        start: int,
        weight: int,
    ) -> Metrics:
        """Mask a client's part of the secure sum, with its noise and its figures; return those that
        leave in the clear."""
        job, terms, ring = self.request.job, self.request.task.secure, self.ring
        assert self.total is not None and terms is not None, "there is a masker"
        steps = (
            effective_steps(result.steps, job.client.sgd_momentum)
            if job.normalise_by_steps
            else 0.0
        )
        if job.noise_multiplier:
            unit = GRID if ring is None else ring.unit
            add_noise(self.request, masker, number, self.total, unit, weight)
        figures = train_figures(
            metrics, spec_of(job.task), steps=steps, scale=terms.scale * terms.norm
        )
        total = self.total.partial().total
        part = total.numpy() if ring is None else narrow(total, ring.bits)
        masker.add(number, part, figures, start + result.micro_batches)
        return {name: metrics[name] for name in CLEAR}

    def answer(self, metrics: dict[int, Metrics]) -> Answer:
        """Return what leaves of the partitions that succeeded, which are those of ``metrics``."""
        task, layout = self.request.task, self.incoming.cached.layout.fingerprint
        if self.masker is not None:
            bits = self.ring.bits if self.ring is not None else None
            return self.masker.answer(task, metrics, layout, bits)
        left_out = {number: len(self.site.partition(number).left_out) for number in metrics}
        if any(left_out.values()):  # all partitions of a message have the same names
            for number, numbers in metrics.items():
                numbers["train_unreadable"] = left_out[number]
        if self.total is not None and self.total.weight:
            total, bits = self.total.partial().total, RING_BITS.get(self.request.job.update_codec)
            self.arrays["sum"] = total.numpy() if bits is None else pack(total, bits)
        if metrics and self.request.job.sends_sketches:
            self.arrays["sketches"] = np.stack([self.sketches[number] for number in metrics])
        return Trained(metrics=metrics, arrays=self.arrays, round=task.round, layout=layout)
