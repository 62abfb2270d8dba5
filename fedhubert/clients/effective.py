"""The job as a site does it: the server's words, and the node's own where they go first, resolved
once.

Everything that works for a site reads the job that :func:`effective_job` returns. Beside it there
are only places and identity (:class:`fedhubert.clients.settings.SiteSettings`).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from fedhubert.clients.settings import NodeConfig, number_in, own_value
from fedhubert.config import ClientJob, MaskedTask
from fedhubert.config.catalog import rules_for
from fedhubert.config.client import device_names
from fedhubert.errors import ConfigError

RESOLVED = (
    "targets.labels",
    "targets.label_rate_hz",
    "targets.min_frames",
    "targets.group_frames",
    "client.device",
    "client.state_max_gb",
)
"""Keys of the job whose value a node's configuration may set or raise; ``targets.label_column`` has
a rule of its own."""

_RATES_HZ = (50, 100)


def effective_job(job: ClientJob, node_config: NodeConfig) -> ClientJob:
    """Return ``job`` with the values that hold at this site; of an effective job, the same again.

    A site with a manifest of its own counts by ``targets.label_column`` only if it names that
    column itself: otherwise a server could ask for the frames of any speaker, or of any text. And
    it trains on several devices only if it names them.

    Raises:
        ConfigError: the node's configuration has a value that cannot be read, by its name there.
    """
    changes: dict[str, dict[str, JsonValue]] = {"targets": {}, "client": {}}
    for key in RESOLVED:
        group, _, name = key.partition(".")
        changes[group][name] = _value(key, getattr(getattr(job, group), name), node_config)
    if own_value(node_config, "data.manifest"):
        named = own_value(node_config, "targets.label_column")
        changes["targets"]["label_column"] = named if named == job.targets.label_column else None
        if not own_value(
            node_config, "client.device"
        ):  # how many processes, is for the site to say
            changes["client"]["device"] = device_names(job.client.device)[0]
    rate_hz, task = changes["targets"]["label_rate_hz"], _own_annotation(job, node_config)
    if rate_hz not in _RATES_HZ:
        name = rules_for("targets.label_rate_hz")["site"]
        raise ConfigError(
            f"{name}={rate_hz} in the node's configuration is neither 50 nor 100", setting=name
        )
    return job.model_copy(
        update={
            "task": task,
            "targets": job.targets.model_copy(update=changes["targets"]),
            "client": job.client.model_copy(update=changes["client"]),
        }
    )


def _own_annotation(job: ClientJob, node_config: NodeConfig) -> MaskedTask:
    """Return the task with the column of labels that the site itself names.

    Raises:
        ConfigError: it has a manifest of its own and names none: a server could learn from any
            column otherwise, and score by it who is in the audio.
    """
    if job.task.annotation is None:
        return job.task
    name, _ = job.task.annotation
    key, named = f"task.{name}", own_value(node_config, f"task.{name}")
    if named:
        return job.task.model_copy(update={name: named})
    if own_value(node_config, "data.manifest"):
        site = rules_for(key)["site"]
        raise ConfigError(
            f"task={job.task.name} learns from labels, and this site has not named the column of "
            "its manifest that they may come from: "
            f"{site}=COLUMN in the node's configuration (fedhubert site --set {site}=COLUMN)",
            setting=key,
        )
    return job.task


def _value(key: str, servers: str | int | float | None, node_config: NodeConfig) -> JsonValue:
    """Return what holds of a key: the server's value where the node says nothing, and where it is
    larger and a site may only raise it."""
    if not own_value(node_config, key):
        return servers
    if isinstance(servers, str) or key in _TEXTS:
        return own_value(node_config, key)
    own = number_in(node_config, rules_for(key)["site"])
    if rules_for(key).get("site_may") == "raise" and servers is not None:
        own = max(own, servers)
    return _TYPES.get(key, float)(own)


_TEXTS = ("targets.labels", "client.device")
_TYPES: Mapping[str, type[int]] = {
    key: int for key in ("targets.label_rate_hz", "targets.min_frames", "targets.group_frames")
}
