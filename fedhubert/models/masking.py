"""Which frames the encoder has to predict: spans of fixed length at random starts, as in HuBERT
pretraining.

Arrays: B rows of a batch, T 50-Hz model frames.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor


@dataclass(frozen=True)
class MaskSpec:
    """How much to mask.

    Attributes:
        probability: Expected share of frames that would be masked if spans never overlapped; they
            do, so 0.8 masks about 0.49.
        length_frames: Length of a span.
        min_masks: Least number of spans in a row.
    """

    probability: float
    length_frames: int
    min_masks: int


class FramePlaces(NamedTuple):
    """Where in a flattened batch [B * T] a mask's frames stand, in order.

    A boolean index makes a GPU tell the host how many frames it picks, and the host wait. Whoever
    draws the mask knows that already.

    Attributes:
        masked_M: Places of the masked frames.
        unmasked_U: Places of all others.
    """

    masked_M: Tensor
    unmasked_U: Tensor

    @classmethod
    def of(cls, mask_BT: Tensor) -> "FramePlaces":
        flat = mask_BT.flatten()
        return cls(flat.nonzero().squeeze(1), flat.logical_not().nonzero().squeeze(1))


def pick(x_BT: Tensor, places_M: Tensor) -> Tensor:
    """Return the frames [M, ...] of [B, T, ...] that stand at ``places_M``."""
    return x_BT.flatten(0, 1).index_select(0, places_M)


def span_mask(
    batch: int, frames: int, spec: MaskSpec, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Draw a mask (True = masked) of shape [batch, frames]; the static, overlapping spans of
    fairseq's ``compute_mask_indices``.

    Every row masks equally many frames: the rows that drew more give some back at random. The last
    frame of a row is never masked (fairseq's start positions end one early), so no row is masked as
    a whole. Spans that would fill a short row are made shorter, and a row of a single frame is not
    masked at all.
    A probability of 0 masks nothing.
    """
    mask = np.zeros((batch, frames), dtype=np.bool_)
    if spec.probability == 0.0:
        return mask
    count = int(spec.probability * frames / spec.length_frames + rng.random())
    count = max(count, spec.min_masks, 1)
    length = spec.length_frames
    if frames - length <= count:
        length = max(1, (frames - 1) // count)
    num_starts = frames - length
    if batch < 1 or num_starts < 1:
        return mask
    for row in mask:
        starts = rng.choice(num_starts, size=min(count, num_starts), replace=False, shuffle=False)
        row[(starts[:, None] + np.arange(length)).ravel()] = True
    fewest = int(mask.sum(axis=1).min())
    for row in mask:
        masked = np.flatnonzero(row)
        row[rng.choice(masked, size=len(masked) - fewest, replace=False)] = False
    return mask
