"""A client's optimiser: made as its settings say, kept and taken up again."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fedhubert.config import ClientConfig
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import HubertModel
from fedhubert.training.muon import Muon

_ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
_MOMENTUM = {"momentum_buffer"}


def build_optimizer(model: HubertModel, client: ClientConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on all parameters, as the recipe has it, or Muon, or SGD."""
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    parameters = list(named.values())
    if client.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=client.lr, momentum=client.momentum, weight_decay=client.weight_decay
        )
    if client.optimizer == "muon":
        return Muon(named, client)
    return torch.optim.AdamW(
        parameters,
        lr=client.lr,
        betas=client.betas,
        eps=client.eps,
        weight_decay=client.weight_decay,
        fused=True,  # one pass over memory
    )


def restore(optimizer: torch.optim.Optimizer, kept: Mapping[str, Any]) -> None:
    """Take over the moments of an earlier round, without changing ``kept``.

    Raises:
        TrainingError: they are another model's or optimiser's.
    """
    parameters: list[Parameter] = optimizer.param_groups[0]["params"]
    state = {
        index: {key: value.clone() for key, value in entry.items()}
        for index, entry in kept["state"].items()
    }
    for index, entry in state.items():
        shapes = {value.shape for value in entry.values() if value.dim()}
        if (
            index >= len(parameters)
            or set(entry) != _names_of_state(optimizer, parameters[index])
            or not shapes <= {parameters[index].shape}
        ):
            raise TrainingError(
                "the optimiser state kept from an earlier round belongs to another model or "
                "optimiser: remove it, or set "
                "client.optimizer_policy=reset",
                setting="client.optimizer_policy",
            )
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def on_cpu(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's ``state_dict`` on the CPU."""
    state = optimizer.state_dict()
    moments = {
        index: {key: value.cpu() for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def _names_of_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> set[str]:
    """Name what the optimiser keeps of a parameter."""
    if isinstance(optimizer, Muon):
        return _MOMENTUM if optimizer.is_matrix(parameter) else _ADAM_STATE
    if isinstance(optimizer, torch.optim.AdamW):
        return _ADAM_STATE
    return _MOMENTUM if optimizer.param_groups[0]["momentum"] else set()
