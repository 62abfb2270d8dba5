"""Which device to train on."""

from collections.abc import Sequence

import torch

from fedhubert.config.client import device_names
from fedhubert.errors import ConfigError

MOST_RANKS = 64
"""Devices of one client."""
_KINDS = ("cpu", "cuda", "mps")


def resolve_device(name: str, setting: str = "client.device") -> torch.device:
    """Return the device for ``auto`` (CUDA if there is any, else the CPU), ``cpu``, ``cuda``,
    ``cuda:1`` or ``mps``; of several (``cuda:0,1``) the first.

    Raises:
        ConfigError: by the name of ``setting``: not a device's name, or one that is not there.
    """
    return resolve_devices(device_names(name), setting)[0]


def resolve_devices(
    names: Sequence[str], setting: str = "client.device"
) -> tuple[torch.device, ...]:
    """Return one device for each name, all different GPUs or all the CPU; raises as
    :func:`resolve_device`."""
    devices = tuple(_resolve(name, setting) for name in names)
    if len(devices) > 1:
        several = ",".join(names)
        if len(set(names)) < len(names) or len(devices) > MOST_RANKS or devices[0].type == "mps":
            raise _unusable(
                setting,
                several,
                f"2 to {MOST_RANKS} different numbers of one kind are several devices, as "
                "cuda:0,1,2,3 or cpu:0,1",
            )
        if not torch.distributed.is_available():
            raise _unusable(setting, several, "this torch has no torch.distributed; name one")
    return devices


def _resolve(name: str, setting: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below, as are all other kinds
    if device.type not in _KINDS:
        raise _unusable(
            setting,
            name,
            "not a device to train on; use auto, cpu, cuda, cuda:N, cuda:0,1,... or mps",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise _unusable(
            setting,
            name,
            f"this machine shows {count} CUDA devices; use auto or cpu, or check the driver and "
            "CUDA_VISIBLE_DEVICES",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _unusable(setting, name, "not available here; use auto or cpu")
    return torch.device("cpu") if device.type == "cpu" else device


def _unusable(setting: str, name: str, reason: str) -> ConfigError:
    return ConfigError(f"{setting}={name!r}: {reason}", setting=setting)
