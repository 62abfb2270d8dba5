"""Settings of Muon, on clients and on the server."""

from __future__ import annotations

from typing import Literal

from fedhubert.config.base import Model, Probability


class MuonConfig(Model):
    """Muon (see :mod:`fedhubert.training.muon`); all else is that of AdamW beside it."""

    momentum: Probability = 0.95
    """Of the gradients, before they are orthogonalised; Nesterov's."""

    precision: Literal["fp32", "bf16"] = "bf16"
    """Of the matrix products that orthogonalise. fp32 where the processor has no bfloat16 of its
    own, or where federated and central runs are held against each other to the last digits."""
