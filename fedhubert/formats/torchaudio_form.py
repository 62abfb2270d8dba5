"""Export to a folder that torchaudio's factory functions load: a state dict, the factory's
arguments, and six lines that put them together."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fedhubert.config import NUM_SPECIAL_ROWS
from fedhubert.errors import CheckpointError
from fedhubert.formats.naming import ENCODER, HEAD, LABELS, MASK
from fedhubert.formats.source import Source
from fedhubert.models.reference import torchaudio_arguments

FACTORY_FILE, WEIGHTS_FILE = "torchaudio_model.json", "model.safetensors"

_LOAD = '''\
"""Builds the model with torchaudio and safetensors alone."""

import json
from pathlib import Path

import torchaudio
from safetensors.torch import load_file

HERE = Path(__file__).parent


def load_model():
    """Return the model in evaluation mode; it takes waveforms [batch, samples] at 16 kHz as they are."""
    description = json.loads((HERE / "torchaudio_model.json").read_text())
    model = getattr(torchaudio.models, description["factory"])(**description["arguments"])
    model.load_state_dict(load_file(HERE / "model.safetensors"))
    return model.eval()


if __name__ == "__main__":
    print(load_model())
'''  # noqa: E501


def write_torchaudio(source: Source, folder: Path) -> None:
    """Write ``model.safetensors``, ``torchaudio_model.json`` and ``load.py`` to an existing folder.

    With a head it is a ``hubert_pretrain_model``, whose classes are the clusters alone: the rows of
    fairseq's special symbols are dropped. Without one (a student) it is the encoder, a
    ``wav2vec2_model``.

    Raises:
        CheckpointError: the weights have a tensor that is no part of HuBERT.
    """
    unknown = [name for name in source.state if not name.startswith((ENCODER, MASK, HEAD))]
    if unknown:
        raise CheckpointError(f"the weights hold `{unknown[0]}`, which HuBERT does not have")
    arguments = torchaudio_arguments(source.config)
    if LABELS in source.state:
        factory = "hubert_pretrain_model"
        state = dict(source.state)
        state[LABELS] = state[LABELS][NUM_SPECIAL_ROWS:]
        arguments |= {
            "num_classes": len(state[LABELS]),
            "mask_prob": source.task.mask_probability,
            "mask_length": source.task.mask_length_frames,
            "feature_grad_mult": _grad_mult(source.config.feature_grad_mult),
        }
    else:
        factory = "wav2vec2_model"
        state = {
            name.removeprefix(ENCODER): tensor
            for name, tensor in source.state.items()
            if name.startswith(ENCODER)
        }
        arguments = {
            name: value
            for name, value in arguments.items()
            if name.startswith(("extractor_", "encoder_"))
        }
        arguments["aux_num_out"] = None
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    description: dict[str, Any] = {"factory": factory, "arguments": arguments}
    (folder / FACTORY_FILE).write_text(json.dumps(description, indent=2) + "\n")
    (folder / "load.py").write_text(_LOAD)


def _grad_mult(value: float) -> float | None:
    """torchaudio takes a factor below 1, and None where gradients pass as they are."""
    return value if value < 1.0 else None
