"""A model's trainable parameters as one flat vector: what travels, is folded and is stepped."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the trainable parameters, in the model's order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "ParameterLayout":
        trainable = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters() if parameter.requires_grad]
        return cls(tuple(name for name, _ in trainable), tuple(shape for _, shape in trainable))

    @property
    def numel(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        return [int(torch.Size(shape).numel()) for shape in self.shapes]

    @property
    def fingerprint(self) -> str:
        """A hash of names and shapes: two sides with the same one agree on what each entry of the vector is."""
        text = "\n".join(f"{name} {shape}" for name, shape in zip(self.names, self.shapes, strict=True))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_vector(self, model: nn.Module) -> torch.Tensor:
        """Return a float32 copy of the parameters [P] on the CPU."""
        vector = torch.empty(self.numel)
        for view, parameter in zip(torch.split(vector, self.sizes), self._parameters(model), strict=True):
            view.copy_(parameter.detach().reshape(-1))
        return vector

    def load_vector(self, model: nn.Module, vector: torch.Tensor) -> None:
        """Copy ``vector`` [P] into the model's parameters; raises ``ValueError`` when the sizes differ."""
        if vector.numel() != self.numel:
            raise ValueError(f"{vector.numel()} values for {self.numel} parameters")
        with torch.no_grad():
            for view, parameter in zip(torch.split(vector, self.sizes), self._parameters(model), strict=True):
                parameter.copy_(view.view(parameter.shape))

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return name -> view of ``vector`` in the parameter's shape."""
        views = torch.split(vector, self.sizes)
        return {name: view.view(shape) for name, shape, view in zip(self.names, self.shapes, views, strict=True)}

    def _parameters(self, model: nn.Module) -> list[nn.Parameter]:
        named = dict(model.named_parameters())
        return [named[name] for name in self.names]
