"""Muon: an optimiser whose steps are orthogonal matrices, for the hidden matrices of an encoder.

A matrix's step is its momentum (Nesterov's) with all singular values brought near 1 by five
Newton-Schulz iterations (Jordan et al. 2024), times 0.2 sqrt(max(M, N)): so it is as long as a step
of AdamW, and both take one rate (Liu et al. 2025, arXiv 2502.16982). Everything else is
stepped by AdamW: norms, biases, embeddings, heads, and the first and the positional convolution.

``torch.optim.Muon`` takes 2-D tensors alone, and bfloat16: here the other convolutions are matrices
[O, C K], and fp32 can be had. On what it takes it agrees to the bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from fedhubert.config import ClientConfig
from fedhubert.config.muon import MuonConfig
from fedhubert.training.parameters import ParameterLayout

_ENCODER = "wav2vec2."
_BY_ADAMW = ("feature_extractor.conv_layers.0.", "pos_conv_embed.")
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPS = 1e-7
_RMS = 0.2
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon steps the parameter of this name and shape; AdamW steps all others."""
    hidden = name.startswith(_ENCODER) and not any(part in name for part in _BY_ADAMW)
    return hidden and len(shape) > 1


def hidden_matrices(layout: ParameterLayout) -> Iterator[tuple[int, int]]:
    """Yield [M, N] of each matrix that Muon steps."""
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if is_hidden_matrix(name, shape):
            yield shape[0], torch.Size(shape[1:]).numel()


def numel_of_matrices(layout: ParameterLayout) -> int:
    """Return how many of a model's parameters Muon steps."""
    return sum(rows * columns for rows, columns in hidden_matrices(layout))


def orthogonalising_flop(layout: ParameterLayout) -> float:
    """Return the floating-point operations of one step's Newton-Schulz iterations."""
    sides = [sorted(matrix) for matrix in hidden_matrices(layout)]
    return float(sum(_ITERATIONS * 2 * (2 * m * m * n + m**3) for m, n in sides))


def orthogonalise(matrix_MN: Tensor, precision: Literal["fp32", "bf16"]) -> Tensor:
    """Return U S V^T of a matrix U D V^T: S is about 0.7 to 1.2, but for directions that are far
    weaker than the strongest; of zeros zeros.

    In the dtype of ``precision``, like the products that it takes.
    """
    tall = matrix_MN.size(0) > matrix_MN.size(1)
    x = matrix_MN.to(_DTYPES[precision])
    x = x.T if tall else x
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x


def muon_step(
    parameter: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor,
    settings: MuonConfig,
    lr: float,
    weight_decay: float,
) -> None:
    """Step ``parameter`` in place, and its momentum: three tensors [O, ...] of one shape."""
    momentum_buffer.lerp_(gradient, 1.0 - settings.momentum)
    direction = gradient.lerp(momentum_buffer, settings.momentum).flatten(1)
    step = orthogonalise(direction, settings.precision).reshape(parameter.shape)
    parameter.mul_(1.0 - lr * weight_decay)
    parameter.add_(step, alpha=-lr * (_RMS * max(direction.shape) ** 0.5))


def adamw_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step ``parameters``, their moments and numbers of steps (float32 scalars) in place, as
    ``torch.optim.AdamW(fused=True)`` does."""
    adamw(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


class Muon(torch.optim.Optimizer):
    """Muon for the hidden matrices, AdamW for everything else.

    Args:
        parameters: By name, in the model's order.
        client: Rate and weight decay of both, AdamW's ``betas`` and ``eps``, and ``muon``.
    """

    def __init__(self, parameters: Mapping[str, Parameter], client: ClientConfig) -> None:
        # "fused": loading keeps numbers of steps on their parameters' device
        defaults = {"lr": client.lr, "weight_decay": client.weight_decay, "fused": True}
        super().__init__(list(parameters.values()), defaults)
        self._client = client
        self._matrices = {
            parameter
            for name, parameter in parameters.items()
            if is_hidden_matrix(name, parameter.shape)
        }

    def is_matrix(self, parameter: Tensor) -> bool:
        """Whether Muon steps this parameter of the model."""
        return parameter in self._matrices

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: Mapping[str, Any]) -> None:
        lr, weight_decay, client = group["lr"], group["weight_decay"], self._client
        moving = [parameter for parameter in group["params"] if parameter.grad is not None]
        others = [parameter for parameter in moving if parameter not in self._matrices]
        for parameter in moving:
            state = self.state[parameter]
            if parameter in self._matrices:
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                muon_step(parameter, parameter.grad, buffer, client.muon, lr, weight_decay)
            elif not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in others]
        adamw_step(
            others,
            [parameter.grad for parameter in others],
            *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")),
            lr=lr,
            betas=client.betas,
            eps=client.eps,
            weight_decay=weight_decay,
        )
