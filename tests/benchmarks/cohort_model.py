"""The model of the benchmark of large cohorts, its data, and a client's step."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

NUM_FEATURES, NUM_CLASSES, BATCH, LEARNING_RATE = 900, 1000, 16, 0.1


class Linear(nn.Module):
    """The model, in the form that pfl asks for."""

    def __init__(self, features: int = NUM_FEATURES, classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, features))

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional.linear(x, self.weight), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {}


def batch_of(client: int) -> list[torch.Tensor]:
    """Return a client's data: features [BATCH, NUM_FEATURES] and classes [BATCH]."""
    generator = torch.Generator().manual_seed(client)
    return [
        torch.randn(BATCH, NUM_FEATURES, generator=generator),
        torch.randint(NUM_CLASSES, (BATCH,), generator=generator),
    ]


_kept: dict[Any, Any] = {}


def kept(key: Any, make: Any) -> Any:
    """Return what this process made for ``key`` the first time: data and models that stay in memory."""
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]


def step(client: int) -> tuple[Linear, torch.optim.Optimizer]:
    """Take a client's step on this process's model, which has to be at the global one."""
    model = kept("model", Linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    optimizer.zero_grad()
    model.loss(*kept(client, lambda: batch_of(client))).backward()
    optimizer.step()
    return model, optimizer
