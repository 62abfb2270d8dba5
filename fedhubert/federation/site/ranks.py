"""A client's local steps on several devices of the site: each rank reads its own micro-batches, as
the site itself would."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.clients.data import open_site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.settings import NodeConfig, log_on_site
from fedhubert.config import ClientConfig
from fedhubert.config.catalog import rules_for
from fedhubert.config.client import device_names
from fedhubert.errors import DataError
from fedhubert.federation.site.handling import kept_state
from fedhubert.federation.site.incoming import Incoming, incoming_model, load_head
from fedhubert.federation.site.local_steps import train_partition
from fedhubert.federation.wire.messages.rounds import Train
from fedhubert.federation.wire.protocol import Request
from fedhubert.models.heads import own_heads
from fedhubert.training.device import resolve_devices
from fedhubert.training.local import LocalResult
from fedhubert.training.rank_pool import pool_of
from fedhubert.training.ranks import Ranks
from fedhubert.training.stepping import Sums

log = logging.getLogger("fedhubert.site")


@dataclass(frozen=True)
class RankResult:
    """What comes of a rank.

    Attributes:
        local: Its own sums; the first rank's optimiser state is arrays.
        left_out: Rows that it could not read.
        vector: Of the first rank, the trained parameters [P].
        head: Of the first rank, the client's own head, where heads are personal.
    """

    local: LocalResult
    left_out: list[int]
    vector: npt.NDArray[np.float32] | None = None
    head: Mapping[str, npt.NDArray[np.float32]] | None = None


def check_devices(client: ClientConfig) -> None:
    """Say in the site's log which of its devices a run leaves idle; raises :class:`ConfigError` for
    one that is not there."""
    count, each = len(resolve_devices(device_names(client.device))), client.accumulate
    if each % count:
        log.warning(
            "client.accumulate=%d micro-batches a step, dealt out to %d devices (%s): "
            "%d of them have nothing to do in its last turn; a multiple of %d keeps all busy",
            each,
            count,
            client.device,
            -each % count,
            count,
        )


def train_on_devices(
    request: Request[Train],
    node_config: NodeConfig,
    partition: Partition,
    incoming: Incoming,
    devices: Sequence[str],
    repeated: int | None,
) -> LocalResult:
    """Train a partition as :func:`~fedhubert.federation.site.local_steps.train_partition` does, by
    one rank on each device; the model of ``incoming`` then has what they have learned.

    Raises:
        RankError: a rank died, hung, or failed in a way that is not known.
        FedhubertError: what training on one device raises.
    """
    # a GPU that trains has the memory that scoring took
    incoming.cached.model.cpu()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    pool = pool_of(resolve_devices(devices))
    results = pool.run(train_rank, request, dict(node_config), partition.number, devices, repeated)
    for row in sorted({row for each in results for row in each.left_out}):
        if row not in partition.left_out:
            partition.left_out.note(row, DataError("a rank could not read it"))
    first = results[0]
    assert first.vector is not None
    incoming.cached.layout.load_vector(incoming.cached.model, torch.from_numpy(first.vector))
    if first.head is not None:
        head = {name: torch.from_numpy(values) for name, values in first.head.items()}
        load_head(incoming.cached.model, head)
    return _together([each.local for each in results])


def train_rank(
    ranks: Ranks,
    request: Request[Train],
    node_config: NodeConfig,
    number: int,
    devices: Sequence[str],
    repeated: int | None,
) -> RankResult:
    """Train partition ``number`` in a rank's process, on its own one of ``devices``."""
    torch.set_num_threads(request.job.client.threads)
    own = devices[ranks.number]
    client = request.job.client.model_copy(update={"device": own})
    request = replace(request, job=request.job.model_copy(update={"client": client}))
    node_config = {**node_config, rules_for("client.device")["site"]: own}
    site = open_site(request.job, node_config)
    log_on_site(site.settings.state_dir)
    partition, incoming = site.partition(number), incoming_model(request, site)
    state = kept_state(request, site.state_folder(request.run_key, number), number)
    local = train_partition(request, site, partition, incoming, state, repeated, ranks)
    kept, cached = local.optimizer_state, incoming.cached
    local = replace(local, optimizer_state=kept and _with_values(kept, torch.Tensor.numpy))
    result = RankResult(local, list(partition.left_out))
    if ranks.number:
        return result
    head = {name: tensor.numpy() for name, tensor in own_heads(cached.model).items()}
    vector = cached.layout.to_vector(cached.model).numpy()
    return replace(result, vector=vector, head=None if request.job.task.shares_head else head)


def _together(ranks: Sequence[LocalResult]) -> LocalResult:
    """Return the ranks' results as that of one client."""
    first, total = ranks[0], Sums()
    for each in ranks:
        total.merge(Sums(dict(each.metrics), each.frames, each.audio_s))
    state = first.optimizer_state
    return replace(
        first,
        micro_batches=sum(each.micro_batches for each in ranks),
        metrics=total.metrics,
        frames=total.frames,
        audio_s=total.audio_s,
        optimizer_state=state and _with_values(state, torch.from_numpy),
    )


def _with_values(state: Mapping[str, Any], change: Callable[[Any], object]) -> dict[str, object]:
    """Return an optimiser's state with each of its tensors, or arrays, changed."""
    entries = {
        index: {name: change(value) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": entries}
