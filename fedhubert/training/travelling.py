"""A federated run's model, and what of it travels."""

import torch

from fedhubert.config import ClientConfig, MaskedTask, ModelConfig
from fedhubert.errors import ConfigError
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.spec import build_model
from fedhubert.training.muon import is_hidden_matrix
from fedhubert.training.parameters import ParameterLayout


def travelling_model(
    config: ModelConfig, task: MaskedTask, client: ClientConfig, seed: int
) -> tuple[HubertModel, ParameterLayout]:
    """Build what ``task`` trains; return it with the layout of what travels of it, which is without
    personal heads, and with a momentum of zeros of each hidden matrix where clients share it.

    Raises:
        ConfigError: a model that does not fit its teacher; no momentum to share.
    """
    model = build_model(config, task, seed)
    if client.shares_momentum:
        model.momenta = {
            name: torch.zeros(parameter.shape)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and is_hidden_matrix(name, parameter.shape)
        }
        if not model.momenta:
            raise ConfigError(
                f"model.trainable={config.trainable} trains no hidden matrix, whose momentum "
                "client.optimizer_policy=shared would share: set client.optimizer_policy=reset",
                setting="client.optimizer_policy",
            )
    return model, ParameterLayout.of(model, heads=task.shares_head)
