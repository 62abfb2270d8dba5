"""``fedhubert doctor``: versions, cores, GPUs, room and extras of this installation; what would
fail, and what to do about it."""

import argparse
import importlib
import importlib.metadata
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedhubert import __version__
from fedhubert.reporting.findings import Finding, look

if TYPE_CHECKING:  # --help answers without it
    from packaging.requirements import Requirement

EXTRAS = {
    "eval": "probes and clusters of `evaluate` and `compare`",
    "privacy": "epsilon of privacy=central",
    "asr": "word errors of task=ctc and `evaluate --text-column`",
    "tensorboard": "reporting.trackers=[tensorboard]",
    "wandb": "reporting.trackers=[wandb]",
    "mlflow": "reporting.trackers=[mlflow]",
    "sweep": "searches, +sweep=optuna",
    "hub": "init_from=hf:OWNER/MODEL",
    "lhotse": "`prepare lhotse`",
    "onnx": "`export --format onnx`, `bench-model`",
    "huggingface": "parquet in `prepare huggingface`",
}
"""What each extra of the package is for; those for developers are not listed."""

GB = 1e9
LEAST_DISK_GB, LEAST_MEMORY_GB, LEAST_SHM_GB = 5.0, 4.0, 2.0
RAY_DISK = 0.95
"""Share of a full disk above which Ray makes no more objects."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no flags: the verb looks at everything."""


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``fedhubert doctor``; returns 1 where something would fail."""
    found = examine()
    for finding in found:
        print(finding)
    problems = sum(not finding.ok for finding in found)
    if problems:
        print(f"{problems} of {len(found)} checks found a problem")
    else:
        print("ready: `fedhubert prepare sample`, then `fedhubert train experiment=demo`")
    return 1 if problems else 0


def examine() -> list[Finding]:
    """Look at everything; what goes wrong on the way is a finding, not an error."""
    return look(
        {
            "python": _python,
            "packages": _packages,
            "torch": _torch,
            "Flower": _flower,
            "audio": _audio,
            "cores and memory": _host,
            "GPU": _gpus,
            "disk": _disks,
            "compiler": _compiler,
            "extras": _extras,
            "sample speech": _sample,
        }
    )


def _python() -> Iterator[Finding]:
    words = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(
        "python", True, f"{words}; fedhubert {__version__} in {Path(__file__).parents[1]}"
    )


def _needs() -> "Iterator[tuple[str, Requirement]]":
    """Yield (name of the extra, requirement) of the installed package; ``""``: of every
    installation."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("fedhubert") or ():
        need = Requirement(text)
        extras = [
            name
            for name in ("", *EXTRAS)
            if not need.marker or need.marker.evaluate({"extra": name})
        ]
        if extras:
            yield extras[0], need


def _version(need: "Requirement") -> str | None:
    """Return the installed version; None where it is missing or another than is needed."""
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return version if need.specifier.contains(version, prereleases=True) else None


def _packages() -> Iterator[Finding]:
    try:
        needs = [need for extra, need in _needs() if not extra]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", True, "fedhubert runs from a checkout", "pip install -e .")
        return
    versions = {need: _version(need) for need in needs}
    for need in (need for need, version in versions.items() if version is None):
        yield Finding(
            "packages", False, f"{need.name} is missing or too old", f"pip install '{need}'"
        )
    here = [f"{need.name} {version}" for need, version in versions.items() if version]
    yield Finding("packages", True, ", ".join(here))


def _torch() -> Iterator[Finding]:
    remedy = "torch and torchaudio of different builds? install both anew from one index"
    for name in ("torch", "torchaudio"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            yield Finding(name, False, f"does not load: {error}", remedy)
            return
    import torch

    yield Finding("torch", True, f"{torch.__version__} and torchaudio load")


def _flower() -> Iterator[Finding]:
    from fedhubert.federation.wire.flower.private import supported

    parts = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("flwr", "ray"))
    yield Finding("Flower", True, f"{parts}; supported is {supported()}")


def _audio() -> Iterator[Finding]:
    import numpy as np
    import soundfile

    from fedhubert.data.folders import AUDIO_SUFFIXES

    known, failed = soundfile.available_formats(), []
    for name in (suffix[1:].upper() for suffix in AUDIO_SUFFIXES):
        if name not in known:
            continue  # a container that another reader opens
        try:
            buffer = io.BytesIO()
            soundfile.write(buffer, np.zeros(1600, np.float32), 16000, format=name)
            buffer.seek(0)
            soundfile.read(buffer)
        except (soundfile.SoundFileError, ValueError) as error:
            failed.append(f"{name} ({error})")
    words = f"libsndfile {soundfile.__libsndfile_version__}"
    if failed:
        yield Finding(
            "audio", False, f"{words} cannot do {', '.join(failed)}", "pip install -U soundfile"
        )
    else:
        yield Finding("audio", True, f"{words} reads {', '.join(AUDIO_SUFFIXES)}")


def _host() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = _memory_gb()
    words = f"{cores} cores, {'unknown' if free is None else f'{free:.1f} GB'} of memory free"
    remedy = []
    if free is not None and free < LEAST_MEMORY_GB:
        remedy.append("every worker holds a model, gradients and optimiser")
    if cores == 1:
        remedy.append("two workers share one core")
    advice = "; ".join([*remedy, "simulation.num_workers=1"]) if remedy else ""
    yield Finding("cores and memory", True, words, advice)
    shm = Path("/dev/shm")
    if shm.is_dir() and (size := shutil.disk_usage(shm).total / GB) < LEAST_SHM_GB:
        yield Finding(
            "shared memory",
            True,
            f"/dev/shm has {size:.2f} GB, so Ray keeps its objects on the disk, which is slower",
            "in a container: --shm-size=4g",
        )


def _memory_gb() -> float | None:
    """Return the memory that programs can still get, in GB; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 / GB for line in lines if "MemAvailable" in line), None
    )


def _gpus() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            yield Finding(
                "GPU", True, f"cuda:{number}, {card.name}, {card.total_memory / GB:.0f} GB"
            )
    elif Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        yield Finding(
            "GPU",
            False,
            f"an NVIDIA driver is here, but torch {torch.__version__} finds no card",
            "a torch with CUDA (pytorch.org), a newer driver, or CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding("GPU", True, "none: clients train on the CPU; client.device=cuda would fail")


def _disks() -> Iterator[Finding]:
    from fedhubert.data.corpora import cache_folder

    home = Path(os.environ.get("FEDHUBERT_HOME") or ".").absolute()
    places = {
        "cache and state": cache_folder(),
        "outputs": home,
        "Ray": Path(tempfile.gettempdir()),
    }
    for name, folder in places.items():
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        usage, writable = shutil.disk_usage(there), os.access(there, os.W_OK)
        words = f"{name} in {folder}, {usage.free / GB:.1f} GB free"
        if not writable:
            yield Finding(
                "disk",
                False,
                f"{words}, not writable",
                "FEDHUBERT_CACHE, FEDHUBERT_HOME or TMPDIR names another",
            )
        elif name == "Ray" and usage.used > RAY_DISK * (usage.used + usage.free):
            yield Finding(
                "disk", False, f"{words}: over {RAY_DISK:.0%} full, Ray stops", "make room"
            )
        else:
            yield Finding("disk", True, words, "make room" * (usage.free / GB < LEAST_DISK_GB))


def _compiler() -> Iterator[Finding]:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    words = found or "none: client.compile=true would train uncompiled"
    yield Finding("compiler", True, words)


def _extras() -> Iterator[Finding]:
    needs: dict[str, list[Requirement]] = {}
    for extra, need in _needs():
        needs.setdefault(extra, []).append(need)
    here = [name for name in EXTRAS if name in needs and all(map(_version, needs[name]))]
    yield Finding("extras", True, f"here: {', '.join(here) or 'none'}")
    for name in (name for name in EXTRAS if name in needs and name not in here):
        yield Finding(
            "extras", True, f"not here: {name} ({EXTRAS[name]})", f"pip install 'fedhubert[{name}]'"
        )


def _sample() -> Iterator[Finding]:
    from fedhubert.data.corpora import sample_folder

    if (sample_folder() / "manifest.csv").is_file():
        yield Finding("sample speech", True, str(sample_folder()))
    else:
        yield Finding(
            "sample speech",
            True,
            "not fetched, so that the demo would fail",
            "fedhubert prepare sample",
        )
