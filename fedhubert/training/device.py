"""Which device to train on."""

import torch

from fedhubert.errors import ConfigError

_KINDS = ("cpu", "cuda", "mps")


def resolve_device(name: str, setting: str = "client.device") -> torch.device:
    """Return the device for ``auto`` (CUDA if there is any, else the CPU), ``cpu``, ``cuda``,
    ``cuda:1`` or ``mps``.

    Raises:
        ConfigError: by the name of ``setting``: not a device's name, or one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below, as are all other kinds
    if device.type not in _KINDS:
        raise _unusable(
            setting, name, "not a device to train on; use auto, cpu, cuda, cuda:N or mps"
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
    return device


def _unusable(setting: str, name: str, reason: str) -> ConfigError:
    return ConfigError(f"{setting}={name!r}: {reason}", setting=setting)
