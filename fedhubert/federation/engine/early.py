"""What can be wrong with this machine for a simulated run, found before Ray starts."""

import contextlib
import logging
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from fedhubert.clients.data import Site, open_site
from fedhubert.config import Config
from fedhubert.config.client import device_names
from fedhubert.data.corpora import with_absolute_data
from fedhubert.data.unreadable import check_files
from fedhubert.errors import ConfigError
from fedhubert.federation.engine.simulation import num_supernodes
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.files import check_writable, private_folder
from fedhubert.targets.labels import precomputed_labels
from fedhubert.training.device import resolve_devices

log = logging.getLogger("fedhubert")

_RAY_SOCKET = "ray/session_2026-11-27_12-00-00_000000_0000000/sockets/plasma_store"
"""The longest of the sockets that Ray opens below its temporary folder."""
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
_RAYS_SHARE = 0.95
"""Of a disk, up to which Ray writes to it (``local_fs_capacity_threshold``)."""
_MOST_CHECKED_H = 100.0
"""Hours of audio up to which the labels of every client are read once before the run."""


def with_devices(config: Config) -> Config:
    """Return ``config`` with the devices that ``simulation.gpus_per_client`` of 2 or more gives to
    a client, where it says no others; without so many here it is for Ray to say."""
    count, simulation = int(config.simulation.gpus_per_client), config.simulation
    there = simulation.ray_address is not None or torch.cuda.device_count() >= count
    if count < 2 or config.client.device not in ("auto", "cuda") or not there:
        return config
    device = f"cuda:{','.join(map(str, range(count)))}"
    client = config.client.model_copy(update={"device": device})
    return config.model_copy(update={"client": client})


def check_machine(config: Config) -> Site:
    """Look at all that the clients of a simulation need here, and return their data.

    Raises:
        FedhubertError: Ray's surroundings, the device, the state folder, the audio or the labels
            cannot be used; the message is in full, where a site would only send a code.
    """
    if config.simulation.ray_address is None:
        check_ray_surroundings(config)
        check_device(config)
    config = with_absolute_data(config)
    site = open_site(
        client_job(config), {"partition-id": 0, "num-partitions": num_supernodes(config)}
    )
    _check_state_folder(site.settings.state_dir)
    clients = [site.partition(number) for number in range(config.federated.num_clients)]
    rows = np.concatenate([client.rows for client in clients])
    check_files(site.manifest, rows, config.data.max_unreadable)
    _check_labels(config, site)
    return site


def check_ray_surroundings(config: Config) -> None:
    """Raise :class:`ConfigError` for variables of the environment under which Ray would not start
    here: ``RAY_ADDRESS``, and ``RAY_TMPDIR`` or ``TMPDIR``."""
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        raise ConfigError(
            f"RAY_ADDRESS={address} is set in the environment: Ray would join that cluster, not "
            "start "
            f"simulation.num_workers={config.simulation.num_workers} workers here. Either `unset "
            "RAY_ADDRESS`, "
            f"or say that you mean it by simulation.ray_address={address}",
            setting="simulation.ray_address",
        )
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name)
    _warn_of_full_disk(folder or "/tmp")
    if not folder:
        return
    socket = os.path.join(os.path.abspath(folder), _RAY_SOCKET)
    if len(os.fsencode(socket)) > _LONGEST_SOCKET:
        most = _LONGEST_SOCKET - len(_RAY_SOCKET) - 1
        raise ConfigError(
            f"{name}={folder} is too long for the sockets that Ray opens in it, whose names the "
            "system limits: "
            f"at most {most} characters. Set RAY_TMPDIR=/tmp, or another short folder",
            setting="simulation",
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        check_writable(Path(folder))
    except OSError as error:
        raise ConfigError(
            f"{name}={folder}: {error.strerror}; Ray keeps its sockets and logs there. Set "
            "RAY_TMPDIR to a folder that can be written",
            setting="simulation",
        ) from None


def _warn_of_full_disk(folder: str) -> None:
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        if usage.free < (1 - _RAYS_SHARE) * usage.total:
            log.warning(
                "the disk of %s is more than %.0f %% full, where Ray moves no more objects to it: "
                "set RAY_TMPDIR to a folder on another disk",
                folder,
                100 * _RAYS_SHARE,
            )


def check_device(config: Config) -> None:
    """Raise :class:`ConfigError` for a ``client.device`` that the workers of a simulation here will
    not have, or that its clients could not use."""
    named, share = device_names(config.client.device), config.simulation.gpus_per_client
    devices = resolve_devices(named)
    if share > 1 and share != int(share):
        raise ConfigError(
            f"simulation.gpus_per_client={share:g}: a client has a share of one GPU, or whole ones",
            setting="simulation.gpus_per_client",
        )
    _check_accumulate(config.client.accumulate, len(devices))
    if devices[0].type != "cuda" or config.client.device == "auto":
        return
    if share == 0:
        raise ConfigError(
            f"client.device={config.client.device}, but simulation.gpus_per_client=0 gives the "
            "workers no GPU: set it to a client's share "
            "of one, for example "
            f"simulation.gpus_per_client={1 / config.simulation.num_workers:g}, or "
            "client.device=auto",
            setting="simulation.gpus_per_client",
        )
    if max(device.index or 0 for device in devices) >= math.ceil(share):
        raise ConfigError(
            f"client.device={config.client.device}: a worker sees the GPUs of its own share alone "
            f"(simulation.gpus_per_client={share:g}), "
            "numbered from 0: use client.device=cuda, and CUDA_VISIBLE_DEVICES to choose among "
            "them",
            setting="client.device",
        )


def _check_accumulate(accumulate: int, count: int) -> None:
    """Raise :class:`ConfigError` where a step has no micro-batch for some of ``count`` devices;
    warn where it has fewer for some than for others."""
    even = f"set client.accumulate to a multiple of {count}, and data.batch_seconds to fit"
    if count > accumulate:
        raise ConfigError(
            f"each client has {count} devices, but client.accumulate={accumulate} micro-batches a "
            f"step leave {count - accumulate} without any: {even}, or name fewer devices",
            setting="client.accumulate",
        )
    if accumulate % count:
        log.warning(
            "client.accumulate=%d micro-batches a step keep %d of a client's %d devices waiting "
            "for the others: %s",
            accumulate,
            count - accumulate % count,
            count,
            even,
        )


def _check_state_folder(folder: Path) -> None:
    try:
        private_folder(folder)
        check_writable(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the state folder {folder}: {error.strerror}; choose another with "
            "client.state_dir=...",
            setting="client.state_dir",
        ) from None


def _check_labels(config: Config, site: Site) -> None:
    """Read labels that were made elsewhere as the clients will, so that what does not fit is said
    here."""
    targets = site.job.targets
    if not config.task.needs_labels or targets.kind != "precomputed":
        return
    hours = site.manifest.lengths(config.data.sample_rate_hz).sum() / (
        3600 * config.data.sample_rate_hz
    )
    clients = range(config.federated.num_clients) if hours <= _MOST_CHECKED_H else range(1)
    rows = np.concatenate([site.partition(number).rows for number in clients])
    precomputed_labels(
        site.manifest, rows, str(targets.labels), targets.label_rate_hz, targets.num_clusters
    )
