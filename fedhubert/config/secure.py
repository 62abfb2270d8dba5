"""Whether updates are masked, so that the server sees their sum only."""

from __future__ import annotations

from typing import Literal

from fedhubert.config.base import Model


class SecureConfig(Model):
    """Secure aggregation: the server sees sums over sites, and no site's own part."""

    mode: Literal["none", "pairwise"] = "none"
    """pairwise: sites mask what they send, and the masks cancel in the sum. Choose it by
    ``secure=pairwise``. Sites that have pinned a roster take part in no other run."""

    @property
    def enabled(self) -> bool:
        """Whether updates are masked."""
        return self.mode != "none"
