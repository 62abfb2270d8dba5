"""The model whose layer gives a second iteration's features: cut down to that layer, named by its content, kept as safetensors."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedhubert.config import ModelConfig, from_json
from fedhubert.errors import FedhubertError, TargetsError
from fedhubert.models.hubert import HubertModel, build_hubert

_PREFIX = "wav2vec2."
_LAYERS = "encoder.transformer.layers."


@dataclass(frozen=True, eq=False)
class Extractor:
    """A HuBERT encoder up to one of its layers.

    Attributes:
        config: Its shape; ``num_layers`` is the layer whose output is the feature. What only training or the head needs is left at one fixed
            value, so that it does not change :attr:`key`.
        state: ``state_dict`` of the encoder (``HubertModel.wav2vec2``), float32 on the CPU.
    """

    config: ModelConfig
    state: Mapping[str, Tensor]

    @classmethod
    def cut(cls, config: ModelConfig, state: Mapping[str, Tensor], layer: int) -> "Extractor":
        """Return what the output of ``layer`` (from 1) of a trained model depends on.

        Raises:
            TargetsError: the model has fewer layers, or weights that do not fit its configuration.
        """
        if layer > config.num_layers:
            raise TargetsError(
                f"targets.source=layer:{layer}, but the model in targets.checkpoint has {config.num_layers} layers",
                setting="targets.source",
            )
        fixed = {"name": "extractor", "num_classes": 6, "final_dim": 1, "label_init": "uniform", "feature_grad_mult": 1.0}
        off = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "feature_dropout", "layer_drop"), 0.0)
        encoder = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
        kept = {name: tensor.float().contiguous() for name, tensor in encoder.items() if _layer_of(name) < layer}
        extractor = cls(config.model_copy(update={**fixed, **off, "logit_temperature": 0.1, "num_layers": layer}), kept)
        extractor.build()
        return extractor

    @cached_property
    def key(self) -> str:
        """32 hex digits that stand for configuration and weights."""
        digest = hashlib.blake2b(self.config.model_dump_json().encode(), digest_size=16)
        for name in sorted(self.state):
            tensor = self.state[name]
            digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
            digest.update(np.ascontiguousarray(tensor.numpy(), dtype="<f4").tobytes())
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state.values())

    def build(self) -> HubertModel:
        """Return the model in evaluation mode, on these weights (not a copy); raises :class:`TargetsError` when they do not fit the shape."""
        model = build_hubert(self.config, seed=0)
        try:
            model.wav2vec2.load_state_dict(dict(self.state), assign=True)  # no copy
        except RuntimeError as error:
            raise TargetsError(
                f"the weights in targets.checkpoint do not fit its configuration: {error}", setting="targets.checkpoint"
            ) from None
        return model.eval().requires_grad_(False)


def extractor_file(folder: Path, key: str) -> Path:
    """Return where the extractor ``key`` is kept; raises :class:`TargetsError` for a key that is none (it names a file)."""
    if len(key) != 32 or not set(key) <= set("0123456789abcdef"):
        raise TargetsError("not the key of an extractor", setting="targets.checkpoint")
    return folder / f"{key}.safetensors"


def save_extractor(extractor: Extractor, folder: Path) -> None:
    """Keep ``extractor`` in ``folder``, whole or not at all; raises :class:`TargetsError` when it cannot be written."""
    path = extractor_file(folder, extractor.key)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(extractor.state), scratch, metadata={"model": extractor.config.model_dump_json()})
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        scratch.unlink(missing_ok=True)
        raise TargetsError(f"cannot keep the extractor in {folder}: {error}", setting="client.state_dir") from None


def find_extractor(folder: Path, key: str) -> Extractor | None:
    """Return the extractor ``key`` from ``folder``, or None where it is not there or not what it was: it is then sent again."""
    path = extractor_file(folder, key)
    try:
        with safe_open(path, framework="pt") as file:
            config = from_json(ModelConfig, file.metadata()["model"])
            extractor = Extractor(config, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return extractor if extractor.key == key else None
    except (OSError, SafetensorError, FedhubertError, KeyError, TypeError):
        return None


def load_extractor(folder: Path, key: str) -> Extractor:
    """Like :func:`find_extractor`; raises :class:`TargetsError` where there is none."""
    extractor = find_extractor(folder, key)
    if extractor is None:
        raise TargetsError(
            f"{extractor_file(folder, key)} is missing or damaged; start the run again, which sends it",
            setting="client.state_dir",
        )
    return extractor


def from_arrays(config_json: str, arrays: Mapping[str, np.ndarray], key: str) -> Extractor:
    """Return an extractor that was sent.

    Raises:
        TargetsError: not the one called ``key``.
        ConfigError: a configuration that is none.
    """
    state = {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in arrays.items()}
    extractor = Extractor(from_json(ModelConfig, config_json), state)
    if extractor.key != key:
        raise TargetsError("the extractor that arrived is not the one announced", setting="targets.checkpoint")
    return extractor


def _layer_of(name: str) -> int:
    """Return the transformer layer (from 0) that a parameter belongs to, -1 for what lies before them."""
    return int(name.removeprefix(_LAYERS).split(".")[0]) if name.startswith(_LAYERS) else -1
