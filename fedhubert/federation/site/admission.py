"""Holds a server's requests to the site's policy: before anything is done, and before anything
leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from fedhubert.clients import Metrics
from fedhubert.clients.effective import effective_job
from fedhubert.clients.settings import (
    KMEANS_FRAMES,
    KMEANS_SEED,
    NodeConfig,
    number_in,
    own_value,
    state_dir_of,
)
from fedhubert.config import ClientJob
from fedhubert.config.catalog import rules_for
from fedhubert.errors import FedhubertError
from fedhubert.federation.site.bookkeeping import book, book_done, count, digest, pin
from fedhubert.federation.site.ledger import Day, Ledger
from fedhubert.federation.site.policy import Policy, default_policy, load_policy
from fedhubert.federation.site.rules import (
    Refusal,
    Refused,
    job_refusals,
    model_refusals,
    raise_first,
)
from fedhubert.federation.wire.flower import Message
from fedhubert.federation.wire.messages.message import Answer, Instruction
from fedhubert.federation.wire.messages.nodes import (
    Describe,
    Description,
    SendExtractor,
    SendTeacher,
)
from fedhubert.federation.wire.messages.rounds import Evaluate, Train, Trained
from fedhubert.federation.wire.messages.secure import Masked
from fedhubert.federation.wire.messages.targets import MomentsKMeans, SeedKMeans, StepKMeans
from fedhubert.federation.wire.protocol import Request

if TYPE_CHECKING:  # what needs torch is loaded for those messages that do
    from fedhubert.clients.data import Site
    from fedhubert.clients.partitions import Partition
    from fedhubert.data.batching import BatchPlan

RAISED = {"targets.min_frames": "min_frames", "targets.group_frames": "group_frames"}
"""Keys of a job that a policy raises, with its own names of them."""


def policy_of(node_config: NodeConfig) -> Policy | None:
    """Return the policy of a node: the file that ``policy`` in its configuration names, the strict
    default with a manifest of its own, otherwise None: nothing is refused, and nothing counted.

    Raises:
        ConfigError: see :func:`fedhubert.federation.site.policy.load_policy`.
    """
    named = node_config.get("policy")
    if named:
        return load_policy(Path(str(named)).expanduser())
    return default_policy(own_data=True) if own_value(node_config, "data.manifest") else None


@dataclass
class Guard:
    """A policy at work on one message at a time.

    Attributes:
        policy: What is allowed.
        node_config: The node's configuration, with what the policy raises.
    """

    policy: Policy
    node_config: NodeConfig
    _started_s: float = field(default=0.0, init=False)
    _received: int = field(default=0, init=False)

    @classmethod
    def of(cls, policy: Policy, node_config: NodeConfig) -> Guard:
        """Return the guard of a node; raises :class:`LedgerError` where its state folder cannot be
        used."""
        values: dict[str, str | int | float] = dict(node_config)
        for key, rule in RAISED.items():
            name = rules_for(key)["site"]
            own = number_in(node_config, name) if own_value(node_config, key) else 1
            values[name] = max(own, getattr(policy.kmeans, rule))
        if policy.kmeans.own_sample:
            values[KMEANS_SEED] = _ledger(node_config).sample_seed()
            values[KMEANS_FRAMES] = policy.kmeans.frames
        return cls(policy, values)

    def admit(self, message: Message, request: Request[Instruction]) -> Request[Instruction]:
        """Return the request, its job as this site does it.

        Raises:
            Refused: the policy does not allow it.
        """
        self._started_s = time.monotonic()
        task = request.task
        self._received = sum(array.nbytes for array in request.arrays.values())
        raise_first(self._refusals(request))
        admitted = replace(request, job=effective_job(request.job, self.node_config))
        segments = self._segments(admitted)
        with _ledger(self.node_config).entry(
            "" if isinstance(task, Describe) else request.run_key
        ) as (run, day):
            count(self.policy, task, request.run_key, self._received, run, day)
            if isinstance(task, Describe):
                self._describe_once_more(admitted, day)
            else:
                pin(run, request.job)
            for number, (start, length) in segments.items():
                book(run, number, start, length, rewinding=self.policy.update.rewinding)
        return admitted

    def leave(self, request: Request[Instruction], answer: Answer | None) -> Answer | None:
        """Return the answer as it leaves, and count the work.

        Raises:
            Refused: it is of less than the policy asks for, or more than may leave.
        """
        sent = 0 if answer is None else sum(array.nbytes for array in answer.arrays.values())
        describes = isinstance(request.task, Describe)
        with _ledger(self.node_config).entry("" if describes else request.run_key) as (run, day):
            for counts in (run, day):
                counts.work_seconds += time.monotonic() - self._started_s
                counts.bytes += self._received + sent
            if isinstance(answer, Trained | Masked) and isinstance(request.task, Train):
                for number, numbers in answer.metrics.items():
                    book_done(
                        run,
                        number,
                        request.task.positions[number],
                        int(numbers["train_micro_batches"]),
                    )
        if isinstance(answer, Trained | Masked) and isinstance(request.task, Train):
            from fedhubert.clients.data import open_site

            site = open_site(request.job, self.node_config)
            for number, numbers in answer.metrics.items():
                plan, start = site.partition(number).train_plan, request.task.positions[number]
                length = int(numbers["train_micro_batches"])
                found = self._too_little(plan, start, length, "client.max_seconds", request.job)
                raise_first(found, number)
        if isinstance(answer, Description):
            rounded = {number: self._rounded(numbers) for number, numbers in answer.metrics.items()}
            return answer.model_copy(update={"metrics": rounded})
        return answer

    def _refusals(self, request: Request[Instruction]) -> Iterator[Refusal]:
        task, policy = request.task, self.policy
        if task.KIND not in policy.instructions:
            yield Refusal(task.KIND, "not among instructions")
        yield from job_refusals(policy, request.job, self.node_config)
        if isinstance(task, SendExtractor):
            yield from model_refusals(policy.model, task.model, "targets.checkpoint", one_name=True)
        if isinstance(task, SendTeacher):
            yield from model_refusals(policy.model, task.model, "task.teacher", one_name=True)
        needless = request.job.targets.kind == "precomputed" or not request.job.task.needs_labels
        if (
            needless
            and not policy.kmeans.needless
            and isinstance(task, SeedKMeans | MomentsKMeans | StepKMeans)
        ):
            yield Refusal("targets.kind", "k-means in a run that needs none")

    def _segments(self, request: Request[Instruction]) -> Mapping[int, tuple[int, int]]:
        """Return partition -> first position and number of the micro-batches that a request trains
        on, all of them looked at."""
        task, job = request.task, request.job
        segments: dict[int, tuple[int, int]] = {}
        if not isinstance(task, Describe | Train | Evaluate):
            return segments
        from fedhubert.clients.data import open_site

        site = open_site(job, self.node_config)
        for number in task.partitions:
            try:
                partition = site.partition(number)
            except FedhubertError:
                continue  # the handler says so, by partition
            raise_first(self._of_partition(task, job, site, partition), number)
            if isinstance(task, Train):
                segments[number] = (
                    task.positions.get(number, 0),
                    _planned(task, job, partition) * job.client.accumulate,
                )
        return segments

    def _of_partition(
        self, task: Instruction, job: ClientJob, site: Site, partition: Partition
    ) -> Iterator[Refusal]:
        update = self.policy.update
        if not isinstance(task, Evaluate):
            steps = _planned(task, job, partition)
            if not update.min_steps <= steps <= update.max_steps:
                yield Refusal(
                    "client.local_steps",
                    f"{steps} steps are not update.min_steps to update.max_steps",
                )
                return
            start = task.positions.get(partition.number, 0) if isinstance(task, Train) else 0
            length = steps * job.client.accumulate
            yield from self._too_little(
                partition.train_plan, start, length, "client.local_steps", job
            )
        plan, least = partition.validation_plan, update.min_validation_utterances
        if len(plan.rows) < least:
            yield Refusal(
                "data.partition.validation_fraction",
                f"{len(plan.rows)} utterances, fewer than {least}",
            )
        elif not isinstance(task, Evaluate):
            scored = plan.first(job.client.validation_batches)
            if sum(len(plan.batch(position).rows) for position in scored) < least:
                yield Refusal(
                    "client.validation_batches",
                    f"fewer than {least} utterances are scored (update.min_validation_utterances)",
                )

    def _too_little(
        self, plan: BatchPlan, start: int, length: int, setting: str, job: ClientJob
    ) -> Iterator[Refusal]:
        """Yield a refusal if ``length`` micro-batches from ``start`` on are too little for an
        update, or the last of them for a momentum that leaves with it."""
        yield from self._too_few(plan, start, length, setting)
        last = job.client.remembered_steps * job.client.accumulate
        if job.client.shares_momentum and last < length:
            yield from self._too_few(plan, start + length - last, last, "client.muon.momentum")

    def _too_few(self, plan: BatchPlan, start: int, length: int, setting: str) -> Iterator[Refusal]:
        update = self.policy.update
        if len(plan.rows) < update.min_utterances:
            yield Refusal(
                "data.manifest",
                f"{len(plan.rows)} utterances to train on, fewer than "
                f"update.min_utterances={update.min_utterances}",
            )
            return
        rows, seconds = set[int](), 0.0
        for position in range(start, start + length):
            if len(rows) >= update.min_utterances and seconds >= update.min_seconds:
                return
            spec = plan.batch(position)
            rows.update(spec.rows.tolist())
            seconds += spec.audio_s
        if len(rows) < update.min_utterances:
            yield Refusal(
                setting,
                f"an update of {len(rows)} utterances, fewer than "
                f"update.min_utterances={update.min_utterances}",
            )
        if seconds < update.min_seconds:
            yield Refusal(
                setting,
                f"an update of {seconds:.1f} s, less than update.min_seconds={update.min_seconds}",
            )

    def _describe_once_more(self, request: Request[Instruction], day: Day) -> None:
        if not request.task.partitions:
            return
        from fedhubert.clients.data import open_site

        job, most = request.job, self.policy.describe.different_per_day
        manifest = open_site(job, self.node_config).manifest
        data = job.data.model_copy(
            update={"manifest": None, "root": None, "num_workers": 0, "prefetch_batches": 1}
        )
        asked = digest(
            f"{manifest.fingerprint(range(len(manifest)))} {job.seed} {job.task.of_data} "
            f"{data.model_dump_json()}"
        )
        if asked not in day.described:
            if len(day.described) >= most:
                raise Refused(
                    f"more than describe.different_per_day={most} ways to cut this audio in a day",
                    setting="data",
                )
            day.described.append(asked)

    def _rounded(self, numbers: Metrics) -> Metrics:
        describe = self.policy.describe
        steps: dict[str, float] = {
            name: describe.round_seconds
            for name in ("train_audio_s", "validation_audio_s", "epoch_audio_s")
        }
        steps |= {
            name: describe.round_utterances
            for name in ("train_utterances", "validation_utterances", "batches_per_epoch")
        }
        return {
            name: _up(value, steps[name]) if name in steps else value
            for name, value in numbers.items()
        }


def _up(value: int | float, step: float) -> int | float:
    return value if step <= 0 else type(value)(ceil(value / step) * step)


def _planned(task: Instruction, job: ClientJob, partition: Partition) -> int:
    planned = job.client.steps_per_round(partition.train_plan.num_batches)
    exactly = (
        task.steps.get(partition.number)
        if isinstance(task, Train) and task.steps is not None
        else None
    )
    return planned if exactly is None else min(max(1, exactly), planned)


def _ledger(node_config: NodeConfig) -> Ledger:
    return Ledger(state_dir_of(node_config, None))
