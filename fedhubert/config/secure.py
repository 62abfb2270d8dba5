"""Whether the server sees sums only."""

from __future__ import annotations

from typing import Literal

from fedhubert.config.base import Model

SecureProtocol = Literal["none", "pairwise"]


class SecureConfig(Model):
    """Secure aggregation (see the chapter in ``fedhubert/federation/secure``)."""

    protocol: SecureProtocol = "none"
    """pairwise: clients mask what they send, so that the server sees sums only; the model is the
    same, bit for bit. Choose it by ``secure=pairwise``."""

    @property
    def enabled(self) -> bool:
        return self.protocol != "none"
