"""Round checkpoints on disk: whole or absent, checked by a checksum, loaded without executing code.

``round_010_checkpoint.pt`` holds what users read (``round``, ``federated_metrics``, ``config``, ``model``); ``round_010_resume.pt`` beside it what only
resuming needs. Each is written to a temporary file, forced to disk and renamed; ``round_010_checkpoint.sha256`` comes last and lists both, so a
checkpoint without it was never finished.
"""

import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedhubert.errors import CheckpointError

FORMAT_VERSION = 1
_NAME = re.compile(r"round_(\d+)_checkpoint\.pt$")
_REQUIRED = ("round", "federated_metrics", "config", "model")


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of a folder, and the newer ones that were passed over, with reasons."""

    round: int | None = None
    path: Path | None = None
    rejected: list[tuple[Path, str]] = field(default_factory=list)

    def load(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (checkpoint, what resuming needs)."""
        assert self.path is not None
        return load_checkpoint(self.path), _load(_sidecar(self.path))


class RoundStore:
    """The round checkpoints of one run, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, round_number: int) -> Path:
        return self.folder / f"round_{round_number:03d}_checkpoint.pt"

    def save(
        self,
        round_number: int,
        model: Mapping[str, torch.Tensor],
        *,
        config: Mapping[str, Any],
        federated_metrics: Mapping[str, Any],
        resume: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint of a round; raises :class:`CheckpointError` when it cannot be written (earlier ones stay whole)."""
        path = self.path(round_number)
        weights = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in model.items()}
        content = {
            "round": round_number,
            "federated_metrics": dict(federated_metrics),
            "config": dict(config),
            "model": weights,
            "format_version": FORMAT_VERSION,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
            _checksums(path).unlink(missing_ok=True)
            sums = [(file, write_atomically(file, value)) for file, value in ((_sidecar(path), dict(resume)), (path, content))]
            lines = "".join(f"{digest}  {file.name}\n" for file, digest in sums)
            _replace_durably(_checksums(path), lines.encode())
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(
                f"cannot write the checkpoint of round {round_number} to {self.folder}: {reason}", setting="checkpoint_dir"
            ) from None
        return path

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint file, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match.group(1)) for match in map(_NAME.match, os.listdir(self.folder)) if match)

    def latest(self) -> Found:
        """Return the newest checkpoint that is whole."""
        rejected: list[tuple[Path, str]] = []
        for number in reversed(self.rounds()):
            path = self.path(number)
            reason = _damage(path)
            if reason is None:
                return Found(number, path, rejected)
            rejected.append((path, reason))
        return Found(rejected=rejected)

    def prune(self, keep_last: int) -> None:
        """Delete all but the newest ``keep_last`` checkpoints (those that were never finished do not count)."""
        finished = [number for number in self.rounds() if _checksums(self.path(number)).is_file()]
        for number in finished[:-keep_last]:
            path = self.path(number)
            for file in (_checksums(path), _sidecar(path), path):  # the checksum first: what is half deleted counts as absent
                file.unlink(missing_ok=True)

    def _clean(self) -> None:
        """Remove what a killed save left."""
        for file in self.folder.glob(".round_*.tmp"):
            file.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a round checkpoint.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint of fedhubert, or holding more than tensors and plain values.
    """
    content = _load(path)
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise CheckpointError(
            f"{path} is not a round checkpoint of fedhubert: it has no {', '.join(missing)}", setting="checkpoint"
        )
    return content


def find_checkpoint(path: Path) -> Path:
    """Return ``path`` if it is a file, or the newest whole checkpoint of a run's folder or its checkpoints folder."""
    if path.is_file():
        return path
    for folder in (path, path / "checkpoints"):
        newest = RoundStore(folder).latest().path if folder.is_dir() else None
        if newest is not None:
            return newest
    raise CheckpointError(f"{path}: no such file, and no folder with a whole round checkpoint", setting="checkpoint")


def write_atomically(path: Path, content: Any) -> str:
    """Save ``content`` with ``torch.save`` under ``path``, all or nothing; return the SHA-256 of the file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getbuffer()
    _replace_durably(path, data)
    return hashlib.sha256(data).hexdigest()


def _replace_durably(path: Path, data: bytes | memoryview) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name.replace("_checkpoint.pt", "_resume.pt"))


def _checksums(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _damage(path: Path) -> str | None:
    """Return why a checkpoint is not whole, or None."""
    checksums = _checksums(path)
    if not checksums.is_file():
        return "it was never finished"
    for line in checksums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        file = path.with_name(name)
        if not file.is_file():
            return f"{name} is missing"
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                return f"{name} is damaged (its checksum differs)"
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", setting="checkpoint") from None
    except Exception as error:  # torch raises many kinds for files that are damaged or hold code
        reason = (
            "it holds more than tensors and plain values"
            if "weights_only" in str(error).lower()
            else "it is damaged or not a checkpoint"
        )
        raise CheckpointError(f"{path} cannot be loaded: {reason}", setting="checkpoint") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint of fedhubert", setting="checkpoint")
    return content
