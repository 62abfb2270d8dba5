"""What a policy refuses of a job and of a model, by the run's keys. Nothing is built and no file is
opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedhubert.clients.settings import NodeConfig, own_value
from fedhubert.config import ClientConfig, ClientJob, FaultsConfig, MaskedTask, ModelConfig
from fedhubert.config.model import NUM_SPECIAL_ROWS
from fedhubert.errors import FedhubertError
from fedhubert.federation.site.policy import ModelPolicy, Policy


class Refused(FedhubertError):
    """A site's policy does not allow what a server asks for; of one ``partition``, or (-1) of the
    whole message."""

    code = "refused"

    def __init__(self, message: str, *, setting: str = "", partition: int = -1) -> None:
        super().__init__(message, setting=setting)
        self.partition = partition


@dataclass(frozen=True)
class Refusal:
    """A key of the run that the policy does not allow as it is.

    Attributes:
        setting: The key, which the server is told.
        text: Why, which the site's log has.
    """

    setting: str
    text: str


def raise_first(refusals: Iterator[Refusal], partition: int = -1) -> None:
    """Raise :class:`Refused` with the first key, if there is any; the message has all."""
    found = list(refusals)
    if found:
        text = "; ".join(f"{refusal.setting}: {refusal.text}" for refusal in found[:20])
        raise Refused(
            f"refused by this site's policy: {text}", setting=found[0].setting, partition=partition
        )


def job_refusals(policy: Policy, job: ClientJob, node_config: NodeConfig) -> Iterator[Refusal]:
    """Yield what is refused of ``job`` as the server sends it."""
    yield from _places(policy, job, node_config)
    yield from model_refusals(policy.model, job.model, "model")
    first, *others = sets = job.targets.label_sets
    clusters = {
        "targets.num_clusters": first.num_clusters,
        "targets.sets": max((each.num_clusters for each in others), default=0),
    }
    for setting, found in clusters.items():
        yield from _beyond(setting, found, "model.max_clusters", policy.model.max_clusters)
    yield from _beyond("targets.sets", len(sets), "model.max_sets", policy.model.max_sets)
    yield from _task(policy, job.task)
    yield from _audio(policy, job)
    yield from _steps(policy, job)
    if job.client.shares_momentum:
        yield from _beyond(
            "client.optimizer_policy",
            8 * num_parameters(job.model),
            "model.max_bytes",
            policy.model.max_bytes,
            "bytes of parameters and momenta",
        )
    if job.noise_multiplier < policy.update.min_noise_multiplier:
        yield Refusal(
            "privacy.noise_multiplier",
            f"{job.noise_multiplier:g} is below "
            f"update.min_noise_multiplier={policy.update.min_noise_multiplier:g} "
            "(privacy=distributed)",
        )
    most = policy.kmeans.max_label_values
    yield from _beyond(
        "targets.label_values", len(job.targets.label_values), "kmeans.max_label_values", most
    )


def model_refusals(
    policy: ModelPolicy, model: ModelConfig, named: str, *, one_name: bool = False
) -> Iterator[Refusal]:
    """Yield what is refused of a model's shape.

    Args:
        named: What the keys begin with.
        one_name: ``named`` is the key to look at, whatever is refused.
    """

    def beyond(field: str, value: int, rule: str, most: int) -> Iterator[Refusal]:
        setting = named if one_name else f"{named}.{field}"
        yield from _beyond(setting, value, f"model.{rule}", most, field)

    front_end = tuple((kernel, stride) for _, kernel, stride in model.conv_layers)
    if policy.convolutions and front_end not in policy.convolutions:
        setting = named if one_name else f"{named}.conv_layers"
        yield Refusal(
            setting,
            f"convolutions [kernel, stride] of {str(front_end)[:200]} are not among "
            "model.convolutions",
        )
    yield from beyond(
        "conv_layers",
        max((channels for channels, _, _ in model.conv_layers), default=0),
        "max_channels",
        policy.max_channels,
    )
    yield from beyond("embed_dim", model.embed_dim, "max_width", policy.max_width)
    yield from beyond("final_dim", model.final_dim, "max_width", policy.max_width)
    yield from beyond("num_layers", model.num_layers, "max_layers", policy.max_layers)
    yield from beyond("num_heads", model.num_heads, "max_heads", policy.max_heads)
    yield from beyond("ffn_dim", model.ffn_dim, "max_ffn", policy.max_ffn)
    yield from beyond(
        "num_classes", model.num_classes, "max_clusters", policy.max_clusters + NUM_SPECIAL_ROWS
    )
    rows = max(model.other_classes, default=0)
    yield from beyond("other_classes", rows, "max_clusters", policy.max_clusters + NUM_SPECIAL_ROWS)
    yield from beyond("other_classes", 1 + len(model.other_classes), "max_sets", policy.max_sets)
    yield from _beyond(
        named, 4 * num_parameters(model), "model.max_bytes", policy.max_bytes, "bytes of parameters"
    )


def num_parameters(model: ModelConfig) -> int:
    """Return the number of an encoder's and its head's weight matrices' entries, from the sizes
    alone: biases and norms are less than a hundredth more."""
    width, convolutions, before = model.embed_dim, 0, 1
    for channels, kernel, _ in model.conv_layers:
        convolutions += before * channels * kernel
        before = channels
    positions = width * (width // model.pos_conv_groups) * model.pos_conv_kernel
    layers = model.num_layers * (4 * width * width + 2 * width * model.ffn_dim)
    heads = sum(width + rows for rows in (model.num_classes, *model.other_classes))
    return convolutions + before * width + positions + layers + model.final_dim * heads


def _places(policy: Policy, job: ClientJob, node_config: NodeConfig) -> Iterator[Refusal]:
    faults = [name for name, value in job.faults if value != getattr(FaultsConfig(), name)]
    if faults and not policy.faults:
        yield Refusal(f"faults.{faults[0]}", "this site does not fail on purpose (faults)")
    named = {
        "client.state_dir": job.client.state_dir is not None,
        "client.state_max_gb": job.client.state_max_gb != ClientConfig().state_max_gb,
        "targets.labels": job.targets.labels is not None,
    }
    for key, by_server in named.items():
        if by_server and not policy.places and not own_value(node_config, key):
            yield Refusal(
                key, "named by the server; name it in the node's configuration, or allow places"
            )


def _task(policy: Policy, task: MaskedTask) -> Iterator[Refusal]:
    """Yield what is refused of a task, whatever it is: shapes of teachers, lists of layers (each is
    a head), bytes on the site's disk; labels to tell apart."""
    if task.name not in policy.tasks:
        yield Refusal("task.name", f"{task.name} is not among tasks")
    told_apart, count = task.outputs or ("", 0)
    most = policy.update.max_outputs
    yield from _beyond(f"task.{told_apart}", count, "update.max_outputs", most)
    for name, value in task:
        setting = f"task.{name}"
        if isinstance(value, ModelConfig):
            yield from model_refusals(policy.model, value, setting)
        elif isinstance(value, tuple) and name != told_apart:
            yield from _beyond(setting, len(value), "model.max_layers", policy.model.max_layers)
        elif name.endswith("_bytes"):
            most = policy.limits.max_teacher_cache_bytes
            yield from _beyond(setting, value, "limits.max_teacher_cache_bytes", most)


def _audio(policy: Policy, job: ClientJob) -> Iterator[Refusal]:
    audio, limits, data = policy.audio, policy.limits, job.data
    if data.min_seconds < audio.min_seconds:
        yield Refusal(
            "data.min_seconds",
            f"{data.min_seconds} s is less than audio.min_seconds={audio.min_seconds}",
        )
    yield from _beyond("data.max_seconds", data.max_seconds, "audio.max_seconds", audio.max_seconds)
    yield from _beyond(
        "data.batch_seconds", data.batch_seconds, "audio.max_batch_seconds", audio.max_batch_seconds
    )
    yield from _beyond(
        "data.num_workers", data.num_workers, "limits.max_threads", limits.max_threads
    )
    yield from _beyond(
        "client.threads", job.client.threads, "limits.max_threads", limits.max_threads
    )
    yield from _beyond(
        "data.prefetch_batches", data.prefetch_batches, "limits.max_prefetch", limits.max_prefetch
    )


def _steps(policy: Policy, job: ClientJob) -> Iterator[Refusal]:
    steps, update = job.client.local_steps, policy.update
    if steps is not None and steps < update.min_steps:
        yield Refusal(
            "client.local_steps", f"{steps} is less than update.min_steps={update.min_steps}"
        )
    yield from _beyond("client.local_steps", steps or 0, "update.max_steps", update.max_steps)
    momentum = job.client.muon.momentum
    if job.client.shares_momentum and momentum < update.min_momentum:
        yield Refusal(
            "client.muon.momentum",
            f"{momentum} is less than update.min_momentum={update.min_momentum}, and it is shared",
        )
    yield from _beyond(
        "client.accumulate", job.client.accumulate, "update.max_accumulate", update.max_accumulate
    )
    yield from _beyond(
        "data.max_unreadable",
        job.data.max_unreadable,
        "update.max_unreadable",
        update.max_unreadable,
    )


def _beyond(
    setting: str, value: float, rule: str, most: float, what: str = ""
) -> Iterator[Refusal]:
    if value > most:
        yield Refusal(
            setting, f"{what + ' ' if what else ''}{value} is more than {rule} allows: {most}"
        )
