"""A client's optimiser: made as its settings say, kept and taken up again."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fedhubert.config import ClientConfig
from fedhubert.errors import TrainingError
from fedhubert.models.heads import is_objectives_own
from fedhubert.models.hubert import HubertModel
from fedhubert.training.muon import Muon

_ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
_MOMENTUM = {"momentum_buffer"}


def build_optimizer(
    model: HubertModel, client: ClientConfig, encoder_rate: float = 1.0
) -> torch.optim.Optimizer:
    """AdamW with weight decay on all parameters, as the recipe has it, or Muon, which goes on with
    the model's ``momenta``, or SGD.

    A group of parameters has its ``factor`` on the learning rate: one group, or, where
    ``encoder_rate`` is not 1, the encoder with this factor, and the objective's own head.
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = _optimizer(named, client)
    for name, momentum in model.momenta.items():  # steps change them in place
        model.momenta[name] = momentum.to(named[name].device)
        optimizer.state[named[name]]["momentum_buffer"] = model.momenta[name]
    (group,) = optimizer.param_groups
    group["factor"] = 1.0
    if encoder_rate != 1.0:
        encoder = set(encoder_parameters(model))
        slow = [parameter for parameter in group["params"] if parameter in encoder]
        group["params"] = [each for each in group["params"] if each not in encoder]
        optimizer.add_param_group({"params": slow, "factor": encoder_rate})
    return optimizer


def encoder_parameters(model: HubertModel) -> list[Parameter]:
    """Return what is trained of a model beside the head that its objective added."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not is_objectives_own(name)
    ]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    """Return the parameters of an optimiser, in the order of its state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer(named: Mapping[str, Parameter], client: ClientConfig) -> torch.optim.Optimizer:
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
    parameters = parameters_of(optimizer)
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
