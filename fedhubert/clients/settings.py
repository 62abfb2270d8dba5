"""What a site sets for itself: its node's configuration first, the server's values where that is silent."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from fedhubert.config import ClientJob
from fedhubert.config.catalog import rules_for
from fedhubert.data.corpora import cache_folder
from fedhubert.errors import ConfigError, quoted
from fedhubert.files import open_here, private_folder

NodeConfig = Mapping[str, Any]
DefaultT = TypeVar("DefaultT", int, float, float | None)


@dataclass(frozen=True)
class SiteSettings:
    """Site-local settings: the node's configuration first, the server's values where it is silent.

    Attributes:
        node: This node's number among ``num_nodes``.
        own_data: The node names its own manifest, which then is one client's data (no partitioning).
        labels, label_rate_hz: Precomputed labels and their rate.
        teacher: The site's own copy of a distillation's teacher, if it names one.
        centroids_hash: Of the centroids that precomputed labels were made with, where the node states it.
        min_frames: Figures over fewer frames do not leave the site, whatever ``targets.min_frames`` allows.
        group_frames: k-means sees means over groups of at least so many frames.
        label_column: The manifest column that may be counted against the clusters, where the site has a manifest of its own.
    """

    node: int
    num_nodes: int
    own_data: bool
    manifest: str
    root: str | None
    state_dir: Path
    device: str
    labels: str | None = None
    label_rate_hz: int = 100
    centroids_hash: str = ""
    teacher: str | None = None
    min_frames: int = 1
    group_frames: int = 1
    label_column: str | None = None
    state_max_gb: float | None = None

    @classmethod
    def read(cls, node_config: NodeConfig, job: ClientJob) -> "SiteSettings":
        """Raises :class:`ConfigError` naming the setting that is missing."""
        if "partition-id" not in node_config or "num-partitions" not in node_config:
            raise ConfigError(
                'start the SuperNode with --node-config "partition-id=... num-partitions=..."', setting="partition-id"
            )
        own = _own(node_config, "data.manifest")
        manifest = own or job.data.manifest
        if not manifest:
            raise ConfigError(
                "no manifest: set data.manifest, or manifest=... in the node's configuration", setting="data.manifest"
            )
        return cls(
            node=int(_parse("partition-id", node_config["partition-id"])),
            num_nodes=int(_parse("num-partitions", node_config["num-partitions"])),
            own_data=bool(own),
            manifest=manifest,
            root=_own(node_config, "data.root") or (None if own else job.data.root),
            state_dir=state_dir_of(node_config, job),
            device=_own(node_config, "client.device") or job.client.device,
            labels=_own(node_config, "targets.labels") or job.targets.labels,
            label_rate_hz=int(_number(node_config, "targets.label_rate_hz", job.targets.label_rate_hz)),
            centroids_hash=str(node_config.get("centroids-hash") or ""),
            teacher=_own(node_config, "task.teacher") or None,
            min_frames=int(_number(node_config, "targets.min_frames", job.targets.min_frames)),
            group_frames=int(_number(node_config, "targets.group_frames", job.targets.group_frames)),
            label_column=_own(node_config, "targets.label_column") if own else job.targets.label_column,
            state_max_gb=_number(node_config, "client.state_max_gb", job.client.state_max_gb),
        )


def _own(node_config: NodeConfig, key: str) -> str:
    """Return what the node's configuration says for a key of the run's, under the name that the key gives it; "" for nothing."""
    value = node_config.get(rules_for(key)["site"])
    return str(value) if value else ""


def _number(node_config: NodeConfig, key: str, servers: DefaultT) -> DefaultT | float:
    """Return the number that holds at this site: the server's where the node's configuration says nothing, and where it is larger and a site
    may only raise it. Raises :class:`ConfigError` for what is no number."""
    rules = rules_for(key)
    value = node_config.get(rules["site"])
    if value in (None, ""):
        return servers
    own = _parse(rules["site"], value)
    return own if servers is None or rules.get("site_may") != "raise" else max(own, servers)


def _parse(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={quoted(value)} in the node's configuration is not a number", setting=name) from None


def number_of(node_config: NodeConfig) -> int:
    """Return the number that a node's configuration gives it, -1 where it gives none that can be read."""
    number = str(node_config.get("partition-id", ""))
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else -1


def state_dir_of(node_config: NodeConfig, job: ClientJob | None) -> Path:
    """Return a node's state folder; ``job`` has the server's word, where there is one."""
    named = _own(node_config, "client.state_dir") or (job and job.client.state_dir) or cache_folder() / "state"
    return Path(str(named)).expanduser().absolute()


class _PrivateLog(logging.FileHandler):
    """A log that is its owner's alone, and no link."""

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(open_here(Path(self.baseFilename), "a+b", private=True), encoding="utf-8", write_through=True)


def log_on_site(state_dir: Path) -> None:
    """Append this process's failures to ``site.log`` in the state folder (once per folder); what is in it never leaves the site."""
    logger, path = logging.getLogger("fedhubert.site"), state_dir / "site.log"
    if any(getattr(handler, "baseFilename", None) == str(path) for handler in logger.handlers):
        return
    try:
        private_folder(state_dir)
        handler = _PrivateLog(path, delay=True)
    except OSError as error:
        raise ConfigError(f"cannot write to the state folder {state_dir}: {error.strerror}", setting="client.state_dir") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
