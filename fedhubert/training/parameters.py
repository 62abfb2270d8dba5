"""A model's trainable parameters, and the momentum that clients share, as one flat vector: what
travels, is folded and is stepped."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from fedhubert.errors import TrainingError
from fedhubert.models.heads import is_objectives_own

_MOMENTUM = "momentum."


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of trainable parameters, in the model's order, and then of momenta (see
    :class:`~fedhubert.models.hubert.HubertModel`)."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module, *, heads: bool = True) -> "ParameterLayout":
        """Return those of ``model``, with or without the heads that its objective added."""
        trainable = [
            (name, tuple(parameter.shape))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (heads or not is_objectives_own(name))
        ]
        trainable += [(name, tuple(momentum.shape)) for name, momentum in _momenta(model).items()]
        return cls(tuple(name for name, _ in trainable), tuple(shape for _, shape in trainable))

    @property
    def without_momenta(self) -> "ParameterLayout":
        """Names and shapes of the parameters alone."""
        count = sum(not name.startswith(_MOMENTUM) for name in self.names)
        return ParameterLayout(self.names[:count], self.shapes[:count])

    @property
    def num_momenta(self) -> int:
        """How many of the vector's entries, its last ones, are momenta."""
        return self.numel - self.without_momenta.numel

    @property
    def numel(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        return [torch.Size(shape).numel() for shape in self.shapes]

    @property
    def fingerprint(self) -> str:
        """A hash of names and shapes: two sides with the same one agree on what each entry of the
        vector is."""
        text = "\n".join(
            f"{name} {shape}" for name, shape in zip(self.names, self.shapes, strict=True)
        )
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_vector(self, model: nn.Module) -> torch.Tensor:
        """Return a float32 copy of the parameters [P] on the CPU; raises like
        :meth:`load_vector`."""
        vector = torch.empty(self.numel)
        for view, parameter in zip(
            self.split(vector).values(), self._parameters(model), strict=True
        ):
            view.copy_(parameter.detach())
        return vector

    def update_of(
        self, model: nn.Module, start: torch.Tensor, room: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return how far the parameters are from ``start`` [P], as a float32 vector [P] on the CPU,
        in the memory of ``room`` [P] where that is given; raises like :meth:`load_vector`."""
        update = torch.empty(self.numel) if room is None else room
        views, before = self.split(update), self.split(start)
        for name, parameter in zip(self.names, self._parameters(model), strict=True):
            torch.sub(parameter.detach().to("cpu", torch.float32), before[name], out=views[name])
        return update

    def load_vector(self, model: nn.Module, vector: torch.Tensor) -> None:
        """Copy ``vector`` [P] into the model's parameters.

        Raises:
            TrainingError: a vector of another size; a parameter, named, that ``model`` lacks or has
                in another shape. Nothing is copied then.
        """
        views = self.split(vector)
        with torch.no_grad():
            for view, parameter in zip(views.values(), self._parameters(model), strict=True):
                parameter.copy_(view)

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return name -> view of ``vector`` [P] in the parameter's shape; raises
        :class:`TrainingError` for another size."""
        if vector.shape != (self.numel,):
            raise TrainingError(
                f"a vector of shape {tuple(vector.shape)} for {self.numel} parameters",
                setting="model",
            )
        views = torch.split(vector, self.sizes)
        return {
            name: view.view(shape)
            for name, shape, view in zip(self.names, self.shapes, views, strict=True)
        }

    def _parameters(self, model: nn.Module) -> list[torch.Tensor]:
        named = {**dict(model.named_parameters()), **_momenta(model)}
        for name, shape in zip(self.names, self.shapes, strict=True):
            found = named.get(name)
            if found is None or tuple(found.shape) != shape:
                has = "lacks it" if found is None else f"has {tuple(found.shape)}"
                raise TrainingError(
                    f"parameter {name}: {shape} expected, the model {has}; was it built from "
                    "another config?",
                    setting="model",
                )
        return [named[name] for name in self.names]


def _momenta(model: nn.Module) -> Mapping[str, torch.Tensor]:
    momenta: Mapping[str, torch.Tensor] = getattr(model, "momenta", {})
    return {_MOMENTUM + name: momentum for name, momentum in momenta.items()}


def tensor_of(ndarray: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor over ``ndarray``'s memory, for reading only where the array is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(ndarray)
