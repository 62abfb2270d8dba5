"""Which device to train on."""

import torch

from fedhubert.errors import ConfigError

_KINDS = ("cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto`` (CUDA if there is any, else the CPU), ``cpu``, ``cuda``,
    ``cuda:1`` or ``mps``.

    Raises:
        ConfigError: not a device's name, or one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below, as are all other kinds
    if device.type not in _KINDS:
        raise _unusable(name, "not a device to train on; use auto, cpu, cuda, cuda:N or mps")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise _unusable(
            name,
            f"this machine shows {count} CUDA devices; use auto or cpu, or check the driver and CUDA_VISIBLE_DEVICES",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _unusable(name, "not available here; use auto or cpu")
    return device


def _unusable(name: str, reason: str) -> ConfigError:
    return ConfigError(f"client.device={name!r}: {reason}", setting="client.device")
