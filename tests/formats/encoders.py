"""What tests of imported encoders share."""

from typing import Any

import torch
from torch import Tensor

from fedhubert.config import ModelConfig
from fedhubert.formats.sizes import STRUCTURE
from fedhubert.formats.starting import load_into
from fedhubert.models.hubert import HubertModel, build_hubert

LABELS = "logit_generator.label_embeddings"


def same_sizes(config: ModelConfig, other: ModelConfig) -> bool:
    return all(getattr(config, name) == getattr(other, name) for name in STRUCTURE)


def assert_loads(model: HubertModel, imported: Any, *, missed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """A model that starts elsewhere becomes ``model``, but for what ``missed``."""
    fresh = build_hubert(model.config, 7)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    report = load_into(fresh, imported)
    assert set(report.missed) == missed
    assert set(report.used) | missed == before.keys()
    wanted = model.state_dict() | {name: before[name] for name in missed}
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def old_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    for new, old in renamed.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state
