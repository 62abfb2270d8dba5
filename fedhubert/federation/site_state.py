"""A local optimiser that stays on the site between rounds, versioned by the round that left it."""

import os
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from fedhubert.checkpoints.files import temporary_path, write_temporary
from fedhubert.errors import CheckpointError


def keep(path: Path, round_number: int, state: dict[str, Any]) -> None:
    """Write the state that round ``round_number`` left; raises :class:`CheckpointError` when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_temporary(path, lambda file: torch.save({"round": round_number, "state": state}, cast(BinaryIO, file)))
        os.replace(temporary_path(path), path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot keep the optimiser in {path.parent}: {error}", setting="client.state_dir") from None


def load_kept(path: Path, round_number: int) -> dict[str, Any] | None:
    """Return the state that an earlier round left, or None (a first round, or a state of a round that was not kept)."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        return kept["state"] if kept["round"] < round_number else None
    except FileNotFoundError:
        return None
    except Exception:  # a damaged file: torch raises many kinds
        raise CheckpointError(
            f"{path} is damaged; remove it to start with a fresh optimiser", setting="client.state_dir"
        ) from None
