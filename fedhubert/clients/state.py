"""What a site keeps of a partition between rounds: its local optimiser, what a lossy codec left
over, and a head of its own.

Each round writes a version of its own. The server names the version to go on from, so a site whose
round was not accepted, or whose server went back to an earlier checkpoint, goes back with it. Kept
are the version gone on from, the new one, and the newest that each checkpoint could need.
"""

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import torch

from fedhubert.errors import CheckpointError, FedhubertError
from fedhubert.files import exclusively, private_folder, temporary_path, write_temporary

STATE_MISSING = "state_missing"
"""Code of a site that no longer has the state (a kept optimiser, left-over rounding, a head) of the
round that the server names."""
_NAME = re.compile(r"round_(\d+)\.pt")


class StateMissing(FedhubertError):
    """The state of the round that the server names is not on this site (any more)."""

    code = STATE_MISSING


@dataclass
class PartitionState:
    """The kept optimiser (``state_dict``), the left-over of the codec [P], and the tensors of a
    personal head by name; None where there is none."""

    optimizer: dict[str, object] | None = None
    residual: torch.Tensor | None = None
    head: dict[str, torch.Tensor] | None = None


class StateFolder:
    """Versions of one partition's state in one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exclusively(self) -> AbstractContextManager[None]:
        """Keep other processes out of this partition's state; raises
        :class:`fedhubert.files.FolderInUse` when one is in it."""
        return exclusively(self._folder, setting="client.state_dir", private=True)

    def load(self, round_number: int, *, personal: bool = False) -> PartitionState:
        """Return the state that ``round_number`` left; an empty one for round 0.

        Raises:
            StateMissing: there is none of that round, or it is damaged; it has a head although
                heads are not ``personal``, and would travel, or none although they are.
        """
        if round_number == 0:
            return PartitionState()
        path = self._path(round_number)
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
            state = PartitionState(kept["optimizer"], kept["residual"], kept.get("head"))
            if (state.head is not None) != personal:
                raise ValueError
            return state
        except Exception as error:  # a damaged file: torch raises many kinds
            missing = isinstance(error, FileNotFoundError)
            reason = "is not there" if missing else "is damaged, or of another task.head"
            raise StateMissing(
                f"{path} {reason}: the partition begins with fresh state in its next round",
                setting="client.state_dir",
            ) from None

    def save(self, round_number: int, state: PartitionState) -> None:
        """Write the state that ``round_number`` left, whole or not at all; raises
        :class:`CheckpointError` when it cannot be written."""
        path = self._path(round_number)
        values = {"optimizer": state.optimizer, "residual": state.residual, "head": state.head}
        try:
            private_folder(self._folder)
            write_temporary(
                path, lambda file: torch.save(values, cast(BinaryIO, file)), private=True
            )
            os.replace(temporary_path(path), path)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot keep state in {self._folder}: {error}", setting="client.state_dir"
            ) from None

    def prune(self, keep: Sequence[int], checkpoints: Sequence[int]) -> None:
        """Delete all versions but those of ``keep`` and, for each checkpoint, the newest that is
        not after it."""
        versions = self.versions()
        needed = {
            max((version for version in versions if version <= checkpoint), default=0)
            for checkpoint in checkpoints
        }
        for version in set(versions) - set(keep) - needed:
            self._path(version).unlink(missing_ok=True)

    def versions(self) -> list[int]:
        """Return the rounds that have left a state here, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(
            int(match.group(1))
            for file in self._folder.iterdir()
            if (match := _NAME.fullmatch(file.name))
        )

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round_{round_number:05d}.pt"
