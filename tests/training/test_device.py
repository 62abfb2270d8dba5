"""Names of devices."""

import pytest
import torch

from fedhubert.config.client import device_names
from fedhubert.errors import ConfigError
from fedhubert.training.device import resolve_device, resolve_devices


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 0)
    assert resolve_device("auto") == torch.device("cpu")
    pretend_gpus(monkeypatch, 1)
    assert resolve_device("auto") == torch.device("cuda")


def test_a_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    for name in ("cpu", "cuda", "cuda:1"):
        assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    pretend_gpus(monkeypatch, count)
    with pytest.raises(
        ConfigError, match=rf"client.device='{name}'.* {count} CUDA devices; use auto or cpu"
    ) as error:
        resolve_device(name)
    assert error.value.setting == "client.device"


def test_mps_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"client.device='mps': not available here"):
        resolve_device("mps")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "meta", "xla"])
def test_what_is_no_device_to_train_on_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"use auto, cpu, cuda"):
        resolve_device(name)


def test_several_devices_are_numbers_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    assert device_names("cuda:0,1") == ("cuda:0", "cuda:1") and device_names("cpu") == ("cpu",)
    assert resolve_devices(device_names("cuda:1,0")) == (
        torch.device("cuda:1"),
        torch.device("cuda:0"),
    )
    assert resolve_device("cuda:1,0") == torch.device("cuda:1")
    assert resolve_devices(device_names("cpu:0,1")) == (torch.device("cpu"),) * 2
    for name, said in (
        ("cuda:0,2", "this machine shows 2 CUDA devices"),
        ("cuda:0,0", "2 to 64 different numbers"),
        ("cuda:0,cuda:1", "not a device to train on"),
        ("cuda:0,", "not a device to train on"),
        ("auto:0,1", "not a device to train on"),
        (f"cpu:{','.join(map(str, range(65)))}", "2 to 64 different numbers"),
    ):
        with pytest.raises(ConfigError, match=said):
            resolve_devices(device_names(name))
