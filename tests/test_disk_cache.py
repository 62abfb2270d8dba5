"""The disk cache: bounded, whole or absent, and done without where it cannot be written."""

import os
import time
from pathlib import Path

import pytest
import torch

from fedhubert.disk_cache import DiskCache


def tensors(number: int) -> dict[str, torch.Tensor]:
    return {"layer.1": torch.full((100,), float(number), dtype=torch.float16)}


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*/*.safetensors")}


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    probe = DiskCache(tmp_path / "probe", 10**9)
    probe.put("aa", tensors(0))
    size = next((tmp_path / "probe").glob("*/*.safetensors")).stat().st_size
    cache = DiskCache(tmp_path / "cache", 4 * size)
    for number, key in enumerate(("aa", "bb", "cc", "dd")):
        cache.put(key, tensors(number))
        time.sleep(0.01)
    found = cache.get("aa")
    assert found is not None and torch.equal(found["layer.1"], tensors(0)["layer.1"])
    cache.put("ee", tensors(4))
    assert (
        "aa" in names(cache.folder)
        and "ee" in names(cache.folder)
        and "bb" not in names(cache.folder)
    )
    assert sum(path.stat().st_size for path in cache.folder.glob("*/*.safetensors")) <= 4 * size
    DiskCache(tmp_path / "cache", size // 2).put("ff", tensors(5))
    assert "ff" not in names(cache.folder)


def test_two_processes_hold_one_limit(tmp_path: Path) -> None:
    first, second = DiskCache(tmp_path, 3000), DiskCache(tmp_path, 3000)
    for number in range(40):
        (first, second)[number % 2].put(f"{number:02d}", tensors(number))
        assert sum(path.stat().st_size for path in tmp_path.glob("*/*.safetensors")) <= 3000
    assert names(tmp_path)


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10**9)
    cache.put("aa", tensors(1))
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert cache.get("aa") is None and not path.exists()
    assert cache.get("bb") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    cache = DiskCache(tmp_path / "cache", 10**9)
    cache.put("aa", tensors(1))
    assert cache.get("aa") is None
    tmp_path.chmod(0o700)


def test_a_file_in_the_folders_place_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    cache = DiskCache(tmp_path / "cache", 10**9)
    cache.put("aa", tensors(1))
    assert cache.get("aa") is None
