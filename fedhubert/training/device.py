"""Which device to train on."""

import torch

from fedhubert.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; raises :class:`ConfigError` for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"client.device={name!r} is not a device; use auto, cpu, cuda or cuda:N", setting="client.device"
        ) from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"client.device={name}: this machine shows {torch.cuda.device_count()} CUDA devices; use client.device=auto or cpu",
            setting="client.device",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("client.device=mps: not available here; use client.device=auto or cpu", setting="client.device")
    return device
