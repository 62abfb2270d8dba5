"""A trained HuBERT from a file: the one place that knows which formats there are."""

from pathlib import Path

from torch import Tensor

from fedhubert.checkpoints.store import find_checkpoint, load_checkpoint
from fedhubert.config import ModelConfig, validate
from fedhubert.errors import CheckpointError


def load_trained_model(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the configuration and ``state_dict`` (torchaudio's names, float32, on the CPU) of the model at ``path``.

    Args:
        path: A round checkpoint, a folder of them, or a run's folder (then its newest intact round).

    Raises:
        CheckpointError: nothing usable there, or a checkpoint that does not say which shape its model has.
    """
    file = find_checkpoint(Path(path).expanduser())
    checkpoint = load_checkpoint(file)
    settings = checkpoint["config"].get("model")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: its config has no `model`, which says which shape the weights have")
    return validate(ModelConfig, settings), checkpoint["model"]
