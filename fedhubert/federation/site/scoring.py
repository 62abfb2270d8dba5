"""The server's model, scored at a site."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from fedhubert.clients import Metrics
from fedhubert.clients.data import Site, open_site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.settings import NodeConfig
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import load_batches, mask_spec
from fedhubert.federation.secure.bindings import model_digest
from fedhubert.federation.secure.figures import score_figures, score_names
from fedhubert.federation.site.handling import Answered, each_partition, kept_state
from fedhubert.federation.site.incoming import Incoming, incoming_model
from fedhubert.federation.site.masker import Masker, of_the_site, subject_of
from fedhubert.federation.wire.messages.rounds import Evaluate, Scored, WithModel
from fedhubert.federation.wire.protocol import Request
from fedhubert.objectives.spec import spec_of
from fedhubert.training.local import evaluate

Head = Mapping[str, torch.Tensor] | None


def evaluate_model(request: Request[Evaluate], node_config: NodeConfig) -> Answered:
    """Score the incoming model on the whole of each partition's validation split (rounds: on
    ``client.validation_batches`` of it)."""
    incoming = incoming_model(request, open_site(request.job, node_config))
    task, spec = request.task, spec_of(request.job.task)
    masker = Masker.of(request, node_config, score_names(spec)) if task.secure else None
    named = model_digest(incoming.vector.numpy()) if masker else ""

    def score_one(site: Site, partition: Partition) -> Metrics:
        head = _own_head(request, site, partition)
        if masker is None:
            return score(request, site, partition, incoming, head, num_batches=0)
        own = of_the_site(request, node_config, site, partition)
        masker.enter(partition.number, subject_of(request, named, partition.number, own))
        metrics = score(request, site, partition, incoming, head, num_batches=0)
        masker.add(partition.number, np.zeros(0, np.int64), score_figures(metrics, spec))
        return {}

    metrics, failures = each_partition(request, node_config, score_one, task.budget_s)
    if masker is None:
        return Scored(metrics=metrics), failures
    return masker.answer(task, metrics, incoming.cached.layout.fingerprint), failures


def _own_head(request: Request[Evaluate], site: Site, partition: Partition) -> Head:
    """Return the head that a client has kept of the round that the request names; None where it has
    none yet, or heads are shared."""
    if request.job.task.shares_head:
        return None
    folder = site.state_folder(request.run_key, partition.number)
    return kept_state(request, folder, partition.number).head


def score(
    request: Request[WithModel],
    site: Site,
    partition: Partition,
    incoming: Incoming,
    head: Head = None,
    *,
    num_batches: int,
) -> Metrics:
    """Return the incoming model's figures, with the client's own ``head`` where it has one, on the
    first ``num_batches`` of a partition's validation split; 0: all."""
    cached, plan = incoming.load(head), partition.validation_plan
    result = evaluate(
        cached.model,
        batches_at(request, site, partition, plan, plan.first(num_batches)),
        task=request.job.task,
        device=incoming.device,
        precision=request.job.client.precision,
        objective=cached.objective,
    )
    return {f"validation_{name}": figure for name, figure in result.metrics.items()}


def batches_at(
    request: Request[WithModel],
    site: Site,
    partition: Partition,
    plan: BatchPlan,
    positions: Sequence[int],
    progress: float = 1.0,
) -> Iterator[Batch]:
    """Yield the micro-batches of a partition at ``positions`` of its plan, labelled and masked as
    the job says at this ``progress`` of the run."""
    job = request.job
    source = site.label_source(job.task, partition, request.task.targets)
    mask = mask_spec(job.task, progress)
    return load_batches(site.manifest, plan, positions, source, mask, job.data, partition.left_out)
