"""Round checkpoints: whole or absent, checked before use, and loaded without running code.

A round has up to three files in the store's folder:

``round_010_checkpoint.pt``      what others read (:func:`load_checkpoint`, s3prl); it is renamed into place last, and only then does the round count
``round_010_resume.pt``          what only resuming needs: state of the server optimiser, positions, centroids
``round_010_checkpoint.sha256``  digests of both (``sha256sum -c`` reads it)
"""  # noqa: E501

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fedhubert.errors import CheckpointError
from fedhubert.files import (
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    explaining_write_errors,
    sync_folder,
    temporary_path,
    write_temporary,
)
from fedhubert.formats.content import FORMAT_VERSION, float32, load_plain, plain, saving, validated
from fedhubert.formats.fairseq_form import round_fields
from fedhubert.formats.round_file import damage_of, digest_path, resume_path, round_path, rounds_in

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatestRound:
    """What :meth:`RoundStore.latest` found.

    Attributes:
        round: Number of the newest intact round, None if there is none.
        path: Its checkpoint.
        rejected: Newer checkpoints that are damaged, newest first, each with the reason.
    """

    round: int | None = None
    path: Path | None = None
    rejected: list[tuple[Path, str]] = field(default_factory=list)

    def load(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the checkpoint, and what was saved for resuming.

        Raises:
            CheckpointError: there is no intact round, it cannot be read, or it was saved without
                what resuming needs.
        """
        if self.path is None:
            raise CheckpointError("no intact checkpoint to load")
        resume = resume_path(self.path)
        if not resume.exists():
            raise CheckpointError(
                f"{self.path} has no {resume.name} beside it: it can be exported, but not resumed",
                setting="resume",
            )
        return validated(self.path, load_plain(self.path)), load_plain(resume)


class RoundStore:
    """The round checkpoints in one folder, written by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._written: set[int] = set()

    def path(self, round_number: int) -> Path:
        """Return where the checkpoint of a round is, or would be."""
        return round_path(self.folder, round_number)

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, intact or not, in order."""
        return rounds_in(self.folder)

    def save(
        self,
        round_number: int,
        model_state: Mapping[str, Tensor],
        *,
        config: Mapping[str, object],
        federated_metrics: Mapping[str, object],
        resume: Mapping[str, object] | None,
    ) -> Path:
        """Write a round; when this returns, it is on the disk. Equal arguments give equal bytes.

        A HuBERT encoder whose sizes are in ``config["model"]`` is also stored under s3prl's names:
        the same tensors, written once.

        Args:
            round_number: The round that the model comes out of.
            model_state: ``state_dict`` of the model; floating-point tensors are stored as float32
                on the CPU.
            config: The run's configuration as plain values (``model_dump(mode="json")``).
            federated_metrics: The round's figures as plain values; NumPy scalars become Python's.
            resume: Plain values and tensors that only resuming needs; None writes no sidecar.

        Raises:
            CheckpointError: the folder cannot be written; what was there before is as it was.
            TypeError: a value that is neither plain nor, where they are allowed, a tensor.
        """
        checkpoint = _checkpoint(round_number, model_state, config, federated_metrics)
        path = self.path(round_number)
        contents: dict[Path, object] = (
            {} if resume is None else {resume_path(path): plain(resume, "resume", tensors=True)}
        )
        contents[path] = checkpoint
        with explaining_write_errors(self.folder, setting="checkpoint_dir"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self._write(path, contents)
        self._written.add(round_number)
        return path

    def save_best(
        self,
        round_number: int,
        model_state: Mapping[str, Tensor],
        *,
        config: Mapping[str, object],
        federated_metrics: Mapping[str, object],
    ) -> Path:
        """Write ``best_checkpoint.pt``, in the form of a round's and instead of the one that is
        there; raises like :meth:`save`."""
        path = self.folder / "best_checkpoint.pt"
        with explaining_write_errors(self.folder, setting="checkpoint_dir"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(
                path, {path: _checkpoint(round_number, model_state, config, federated_metrics)}
            )
        return path

    def _write(self, path: Path, contents: dict[Path, object]) -> None:
        """Write all files under temporary names first: a full disk is met before anything that
        exists is touched."""
        written: list[Path] = []
        try:
            lines = []
            for target, values in contents.items():
                lines.append(f"{write_temporary(target, saving(values))}  {target.name}\n")
                written.append(target)
            digests = digest_path(path)
            write_temporary(digests, lambda file: file.write("".join(lines).encode()))
            written.insert(0, digests)
            # a round saved again: take it away as a whole, so that files of two saves are never
            # seen together
            if path.exists():
                _remove(path)
                sync_folder(self.folder)
            for target in written[:-1]:
                os.replace(temporary_path(target), target)
            sync_folder(self.folder)
            os.replace(temporary_path(path), path)
            sync_folder(self.folder)
        except BaseException:
            for target in written:
                temporary_path(target).unlink(missing_ok=True)
            raise

    def latest(self) -> LatestRound:
        """Return the newest intact round (its sidecar included); reads whole files, changes
        nothing."""
        rejected: list[tuple[Path, str]] = []
        for number in reversed(self.rounds()):
            path = self.path(number)
            damage = damage_of(path, sidecar=True)
            if damage is None:
                return LatestRound(number, path, rejected)
            rejected.append((path, damage))
        return LatestRound(rejected=rejected)

    def prune(self, keep_last: int) -> None:
        """Delete all but the newest ``keep_last`` rounds, and never the newest intact one."""
        rounds = self.rounds()
        keep = set(rounds[-max(1, keep_last) :])
        intact = None if keep & self._written else self.latest().round
        with explaining_write_errors(self.folder, setting="checkpoint_dir"):
            for number in rounds:
                if number not in keep and number != intact:
                    _remove(self.path(number))

    def _remove_leftovers(self) -> None:
        """Remove what a killed save or prune left: temporary files, and sidecars without their
        checkpoint."""
        for file in self.folder.iterdir():
            orphan = re.fullmatch(r"(round_\d{3,})_(resume\.pt|checkpoint\.sha256)", file.name)
            named = (f"{TEMPORARY_PREFIX}round_", f"{TEMPORARY_PREFIX}best_")
            temporary = file.name.startswith(named) and file.name.endswith(TEMPORARY_SUFFIX)
            if temporary or (
                orphan and not (self.folder / f"{orphan.group(1)}_checkpoint.pt").exists()
            ):
                file.unlink(missing_ok=True)


def _checkpoint(
    round_number: int,
    model_state: Mapping[str, Tensor],
    config: Mapping[str, object],
    federated_metrics: Mapping[str, object],
) -> dict[str, object]:
    model = {name: float32(tensor) for name, tensor in model_state.items()}
    return {
        "format_version": FORMAT_VERSION,
        "round": int(round_number),
        "federated_metrics": plain(federated_metrics, "federated_metrics"),
        "config": plain(config, "config"),
        "model": model,
        **plain(round_fields(config, model), "s3prl", tensors=True),
    }


def _remove(path: Path) -> None:
    """Delete a round's files, its checkpoint first: from then on the round does not count."""
    for file in (path, resume_path(path), digest_path(path)):
        file.unlink(missing_ok=True)
