"""Places and identity of a node, from its own configuration: where its audio and its state are, and
which number it has."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from fedhubert.config import ClientJob
from fedhubert.config.catalog import rules_for
from fedhubert.data.corpora import cache_folder
from fedhubert.errors import ConfigError, quoted
from fedhubert.files import open_here, private_folder

NodeConfig = Mapping[str, Any]

KMEANS_SEED, KMEANS_FRAMES = "kmeans-seed", "kmeans-frames"
"""Names in a node's configuration of its own sample for k-means."""


@dataclass(frozen=True)
class OwnSample:
    """A site's own sample for k-means, in the place of the one that a job describes.

    Attributes:
        seed: Which utterances are drawn. Private: whoever knows it knows the order of the frames.
        frames: The most frames.
    """

    seed: int
    frames: int


@dataclass(frozen=True)
class SiteSettings:
    """Places and identity. What the job is at this site is another thing
    (:func:`fedhubert.clients.effective.effective_job`).

    Attributes:
        node: This node's number among ``num_nodes``.
        own_data: The node names its own manifest, which then is one client's data (no
            partitioning).
        teacher: The site's own copy of a distillation's teacher, if it names one.
        centroids_hash: Of the centroids that precomputed labels were made with, where the node
            states it.
        sample: The site's own sample for k-means, if it has one.
    """

    node: int
    num_nodes: int
    own_data: bool
    manifest: str
    root: str | None
    state_dir: Path
    teacher: str | None = None
    centroids_hash: str = ""
    sample: OwnSample | None = None

    @classmethod
    def read(cls, node_config: NodeConfig, job: ClientJob) -> "SiteSettings":
        """Raises :class:`ConfigError` naming the setting that is missing."""
        if "partition-id" not in node_config or "num-partitions" not in node_config:
            raise ConfigError(
                'start the SuperNode with --node-config "partition-id=... num-partitions=..."',
                setting="partition-id",
            )
        own = own_value(node_config, "data.manifest")
        manifest = own or job.data.manifest
        if not manifest:
            raise ConfigError(
                "no manifest: set data.manifest, or manifest=... in the node's configuration",
                setting="data.manifest",
            )
        return cls(
            node=int(number_in(node_config, "partition-id")),
            num_nodes=int(number_in(node_config, "num-partitions")),
            own_data=bool(own),
            manifest=manifest,
            root=own_value(node_config, "data.root") or (None if own else job.data.root),
            state_dir=state_dir_of(node_config, job),
            teacher=own_value(node_config, "task.teacher") or None,
            centroids_hash=str(node_config.get("centroids-hash") or ""),
            sample=_own_sample(node_config),
        )


def _own_sample(node_config: NodeConfig) -> OwnSample | None:
    if KMEANS_SEED not in node_config:
        return None
    frames = int(number_in(node_config, KMEANS_FRAMES)) if KMEANS_FRAMES in node_config else 100_000
    return OwnSample(int(number_in(node_config, KMEANS_SEED)), frames)


def own_value(node_config: NodeConfig, key: str) -> str:
    """Return what the node's configuration says for a key of the run's, under the name that the key
    gives it; "" for nothing."""
    value = node_config.get(rules_for(key)["site"])
    return "" if value in (None, "", False) else str(value)


def number_in(node_config: NodeConfig, name: str) -> float:
    """Return the number that the node's configuration has under ``name``; raises
    :class:`ConfigError` for what is none."""
    value = node_config[name]
    try:
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{name}={quoted(value)} in the node's configuration is not a number", setting=name
        ) from None


def number_of(node_config: NodeConfig) -> int:
    """Return the number that a node's configuration gives it, -1 where it gives none that can be
    read."""
    number = str(node_config.get("partition-id", ""))
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else -1


def state_dir_of(node_config: NodeConfig, job: ClientJob | None) -> Path:
    """Return a node's state folder; ``job`` has the server's word, which counts only where the
    manifest is the server's, too."""
    servers = (
        None if job is None or own_value(node_config, "data.manifest") else job.client.state_dir
    )
    return (
        Path(own_value(node_config, "client.state_dir") or servers or cache_folder() / "state")
        .expanduser()
        .absolute()
    )


TOLD = "FEDHUBERT_TOLD"
"""Variable of the environment of a simulation's workers: the file that their user reads along."""


class _PrivateLog(logging.FileHandler):
    """A log that is its owner's alone, and no link."""

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(
            open_here(Path(self.baseFilename), "a+b", private=True),
            encoding="utf-8",
            write_through=True,
        )


class _OneLine(logging.Formatter):
    """A record as one line of JSON, a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(super().format(record))


def log_on_site(state_dir: Path) -> None:
    """Append this process's failures to ``site.log`` in the state folder (once per folder); what is
    in it never leaves the site.

    In a simulation they are the user's own: they also go to the file that ``FEDHUBERT_TOLD``
    names, as lines of JSON, which the run's process says on its terminal.
    """
    logger, path = logging.getLogger("fedhubert.site"), state_dir / "site.log"
    if any(getattr(handler, "baseFilename", None) == str(path) for handler in logger.handlers):
        return
    try:
        private_folder(state_dir)
        handler = _PrivateLog(path, delay=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the state folder {state_dir}: {error.strerror}",
            setting="client.state_dir",
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [handler]
    if os.environ.get(TOLD):
        told = _PrivateLog(os.environ[TOLD], delay=True)
        told.setFormatter(_OneLine("%(message)s"))
        told.setLevel(logging.WARNING)
        logger.addHandler(told)
    logger.setLevel(logging.INFO)
    logger.propagate = False
