"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1): a frozen matrix W gets a
learned B A beside it, of few numbers, and W + (alpha / rank) B A in its place when training is
over.

``peft`` has the same for models of transformers; torchaudio's layers it would wrap under other
names, which checkpoints here could not have.

Shape suffixes: R rank, I inputs, O outputs.
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhubert.errors import CheckpointError
from fedhubert.models.hubert import HubertModel
from fedhubert.seeding import derive_seed

DOWN, UP = "lora_A", "lora_B"
"""What the two matrices are called beside their ``weight``, as in peft."""

_PLACES = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "output": "attention.out_proj",
    "feed_forward": ("feed_forward.intermediate_dense", "feed_forward.output_dense"),
}


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter: at first the layer as it was, since B is zero."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        # as nn.Linear begins, and peft
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b + scale B A x."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def add_adapters(model: HubertModel, seed: int) -> None:
    """Give the projections that the model's configuration names an adapter in every layer; the
    global random generators are left as they were."""
    config = model.config
    names = [_PLACES[projection] for projection in config.adapter_projections]
    places = [place for name in names for place in ((name,) if isinstance(name, str) else name)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model/adapters"))
        for layer in model.wav2vec2.encoder.transformer.layers:
            for place in places:
                inside, _, name = place.partition(".")
                module = layer.get_submodule(inside)
                linear = cast(nn.Linear, module.get_submodule(name))
                setattr(
                    module, name, AdaptedLinear(linear, config.adapter_rank, config.adapter_alpha)
                )


def is_adapters(name: str) -> bool:
    """Whether a tensor belongs to an adapter."""
    return name.endswith((f".{DOWN}", f".{UP}"))


def merged(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return a model's weights with its adapters added to the matrices that they are of; without
    adapters the same tensors.

    Raises:
        CheckpointError: half an adapter, or one of other sizes than its matrix.
    """
    found = {name: tensor for name, tensor in state.items() if not is_adapters(name)}
    for name in filter(is_adapters, state):
        place = name.rpartition(".")[0]
        parts = [state.get(f"{place}.{part}") for part in (DOWN, UP, "weight")]
        down_RI, up_OR, weight_OI = parts
        if down_RI is None or up_OR is None or weight_OI is None or not _fit(*parts):
            shapes = [None if part is None else tuple(part.shape) for part in parts]
            raise CheckpointError(f"the adapter of {place} is not whole: {shapes}")
        if name.endswith(DOWN):
            found[f"{place}.weight"] = weight_OI + alpha / len(down_RI) * (up_OR @ down_RI)
    return found


def _fit(*parts: Tensor | None) -> bool:
    down, up, weight = (() if part is None else tuple(part.shape) for part in parts)
    return len(down) == len(up) == 2 and down[0] == up[1] > 0 and (up[0], down[1]) == weight
