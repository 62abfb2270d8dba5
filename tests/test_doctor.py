"""``fedhubert doctor``: this installation is fine, and what is broken is said with its remedy."""

import argparse
import importlib
import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhubert.cli import main
from fedhubert.commands import doctor

GB = 10**9


def lines(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, list[str]]:
    """Run it, expect this exit code, and return its lines by what was looked at."""
    assert main(["doctor"]) == code
    said: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        said.setdefault(line[8:].split(":")[0], []).append(line)
    return said


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FEDHUBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        doctor.shutil,
        "disk_usage",
        lambda path: argparse.Namespace(total=9 * GB, used=GB, free=8 * GB),
    )
    yield tmp_path / "cache"


def test_this_installation_works(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    said = lines(capsys, 0)
    assert importlib.metadata.version("torch") in said["packages"][0]
    assert all(
        line.startswith("ok")
        for name in ("python", "torch", "Flower", "audio")
        for line in said[name]
    )
    assert "cores" in said["cores and memory"][0] and str(cache) in said["disk"][0]
    assert "here: eval" in said["extras"][0]
    assert "fedhubert prepare sample" in said["sample speech"][0]
    (cache / "sample").mkdir(parents=True)
    (cache / "sample/manifest.csv").touch()
    assert lines(capsys, 0)["sample speech"] == [f"ok      sample speech: {cache / 'sample'}"]


def test_every_extra_for_users_has_words() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"test", "bench", "dev"}
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in doctor.EXTRAS)


def test_versions_that_do_not_suffice_and_extras_that_are_missing_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "scikit-learn":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.0" if name == "flwr" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    said = lines(capsys, 1)
    assert said["packages"][0].startswith(
        "problem packages: flwr is missing or too old; pip install 'flwr["
    )
    assert (
        "warning extras: not here: eval (probes and clusters of `evaluate` and `compare`); pip install 'fedhubert[eval]'"
        in said["extras"]
    )


def test_a_torchaudio_of_another_build_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def load(name: str, package: str | None = None) -> object:
        if name == "torchaudio":
            raise OSError("libc10_cuda.so: cannot open shared object file")
        return real(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    said = lines(capsys, 1)
    assert "libc10_cuda.so" in said["torchaudio"][0] and "from one index" in said["torchaudio"][0]


def test_a_driver_without_cuda_little_memory_and_a_full_disk_are_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        doctor.shutil, "which", lambda name: "/bin/x" if name == "nvidia-smi" else None
    )
    monkeypatch.setattr(doctor, "_memory_gb", lambda: 1.5)
    monkeypatch.setattr(
        doctor.shutil,
        "disk_usage",
        lambda path: argparse.Namespace(total=GB, used=96 * GB // 100, free=4 * GB // 100),
    )
    said = lines(capsys, 1)
    assert said["GPU"][0].startswith("problem") and "finds no card" in said["GPU"][0]
    assert "simulation.num_workers=1" in said["cores and memory"][0]
    assert any(
        line.startswith("problem disk: Ray") and "make room" in line for line in said["disk"]
    )
    assert "client.compile=true" in said["compiler"][0]


def test_what_a_look_does_not_foresee_is_a_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[doctor.Finding]:
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor, "_host", broken)
    assert "no such device" in lines(capsys, 1)["cores and memory"][0]
