"""A trained model, or the part of one that a task needs, as sites receive and keep it: named by its
content, in safetensors."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedhubert.config import ModelConfig, from_json
from fedhubert.errors import FedhubertError
from fedhubert.files import open_here, private_folder, scratch_path

ENCODER = "wav2vec2."
_LAYERS = "wav2vec2.encoder.transformer.layers."

UNUSED = {
    "label_init": "uniform",
    "feature_grad_mult": 1.0,
    **dict.fromkeys(
        ("dropout", "attention_dropout", "activation_dropout", "feature_dropout", "layer_drop"), 0.0
    ),
}
"""Settings that only training uses, at one fixed value each, so that they do not change a kept
model's key."""
TRAINED = (
    "trainable",
    "frozen_part",
    "adapter_rank",
    "adapter_alpha",
    "adapter_projections",
)
"""Settings of what a run trains of a model, which change nothing that it computes: keys do not
depend on them."""
NO_HEAD = {"num_classes": 6, "final_dim": 1, "logit_temperature": 0.1}
"""The same for a model whose head is not kept."""
_NEVER_KEPT = {"other_classes"}
"""Heads of further sets of labels."""


def short_digest() -> hashlib.blake2b:
    """Return a fresh digest of 32 hexadecimal digits, the shorter kind of key."""
    return hashlib.blake2b(digest_size=16)


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """Sizes and tensors (float32, on the CPU) of a frozen model; subclasses say what it is called
    in messages and how its key is made."""

    config: ModelConfig
    state: Mapping[str, Tensor]

    noun: ClassVar[str]
    key_noun: ClassVar[str]
    error: ClassVar[type[FedhubertError]]
    setting: ClassVar[str]
    key_setting: ClassVar[str]

    @staticmethod
    def new_digest() -> Any:
        """Return a fresh ``hashlib`` object; the key is its hexadecimal digest."""
        return hashlib.sha256()

    @cached_property
    def key(self) -> str:
        """Stands for configuration and weights."""
        digest = self.new_digest()
        sizes = self.config.model_dump_json(exclude={*TRAINED, *_NEVER_KEPT})
        digest.update(sizes.encode())
        for name in sorted(self.state):
            tensor = self.state[name]
            digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
            digest.update(np.ascontiguousarray(tensor.numpy(), dtype="<f4").data)
        return str(digest.hexdigest())

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state.values())

    @classmethod
    def file(cls, folder: Path, key: str) -> Path:
        """Return where the model ``key`` is kept; raises :attr:`error` for a key that is none (it
        names a file)."""
        if len(key) != 2 * cls.new_digest().digest_size or not set(key) <= set("0123456789abcdef"):
            raise cls.error(f"not the {cls.key_noun}", setting=cls.key_setting)
        return folder / f"{key}.safetensors"

    def save(self, folder: Path) -> None:
        """Keep the model in ``folder``, whole or not at all; raises :attr:`error` when it cannot be
        written."""
        path = self.file(folder, self.key)
        scratch, about = scratch_path(path), self.config.model_dump_json(exclude=_NEVER_KEPT)
        try:
            private_folder(folder)
            open_here(scratch, "xb", private=True).close()
            save_file(dict(self.state), scratch, metadata={"model": about})
            os.replace(scratch, path)
        except (OSError, SafetensorError) as error:
            scratch.unlink(missing_ok=True)
            raise self.error(
                f"cannot keep the {self.noun} in {folder}: {error}", setting="client.state_dir"
            ) from None

    @classmethod
    def find(cls, folder: Path, key: str) -> Self | None:
        """Return the model ``key`` from ``folder``, or None where it is not there or not what it
        was: it is then sent again."""
        path = cls.file(folder, key)
        try:
            with safe_open(path, framework="pt") as file:
                config = from_json(ModelConfig, file.metadata()["model"])
                found = cls(config, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return found if found.key == key else None
        except (OSError, SafetensorError, FedhubertError, KeyError, TypeError):
            return None

    @classmethod
    def received(
        cls, config: ModelConfig, arrays: Mapping[str, npt.NDArray[np.generic]], key: str
    ) -> Self:
        """Return a model that was sent.

        Raises:
            FedhubertError: :attr:`error` if it is not the one called ``key``.
        """
        state = {
            name: torch.from_numpy(np.array(array, dtype=np.float32))
            for name, array in arrays.items()
        }
        arrived = cls(config, state)
        if arrived.key != key:
            raise cls.error(
                f"the {cls.noun} that arrived is not the one announced", setting=cls.setting
            )
        return arrived


def layer_of(name: str) -> int:
    """Return the transformer layer (from 0) that a parameter of a :class:`HubertModel` belongs to,
    -1 for what lies before them."""
    return int(name.removeprefix(_LAYERS).split(".")[0]) if name.startswith(_LAYERS) else -1
