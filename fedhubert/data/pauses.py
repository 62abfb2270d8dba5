"""Where a long recording can be cut without cutting a word: at its quietest places."""

import numpy as np
import numpy.typing as npt

HOP_S = 0.02
_SMOOTH_HOPS = 15
"""A pause is 0.3 s: shorter ones lie inside words (stops)."""


class Pauses:
    """Energy of a recording every 20 ms, from which cuts are chosen.

    Args:
        longest_s: No piece is longer.
    """

    def __init__(self, rate_hz: int, longest_s: float) -> None:
        self._hop = max(1, round(HOP_S * rate_hz))
        self._longest = max(3, int(longest_s / HOP_S * (HOP_S * rate_hz / self._hop)))
        self._energies: list[npt.NDArray[np.float64]] = []
        self._left = np.zeros(0, np.float32)

    def add(self, start: int, samples: npt.NDArray[np.float32]) -> None:
        """Take the samples [N] that follow those before."""
        samples = np.concatenate([self._left, samples]) if len(self._left) else samples
        count = len(samples) // self._hop
        hops = samples[: count * self._hop].reshape(count, self._hop)
        self._energies.append(np.einsum("ij,ij->i", hops, hops, dtype=np.float64))
        self._left = samples[count * self._hop :].copy()

    def cuts(self, num_samples: int) -> list[int]:
        """Return the samples between pieces, in order: none for what is short enough.

        Each cut is in the middle of the quietest 0.3 s between half and all of the longest piece
        after the one before; what would leave a short rest is shared by the last two.
        """
        energy = np.concatenate(self._energies) if self._energies else np.zeros(0)
        total = -(-num_samples // self._hop)
        kernel = np.ones(_SMOOTH_HOPS) / _SMOOTH_HOPS
        smooth = np.convolve(energy, kernel, mode="same") if len(energy) >= _SMOOTH_HOPS else energy
        cuts, position = [], 0
        while (left := total - position) > self._longest:
            if left > 1.5 * self._longest:
                low, high = self._longest // 2, self._longest
            else:
                low = max(left - self._longest, left // 3)
                high = min(self._longest, 2 * left // 3)
            window = smooth[position + low : position + high + 1]
            position += low + (int(np.argmin(window)) if len(window) else 0)
            cuts.append(position * self._hop)
        return cuts
