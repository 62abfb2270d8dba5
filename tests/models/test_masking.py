import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.models.wav2vec2.components import _compute_mask_indices

from fedhubert.models.masking import MaskSpec, span_mask

RECIPE = MaskSpec(probability=0.8, length_frames=10, min_masks=2)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("batch", "frames"), [(1, 780), (5, 780), (32, 780), (4, 149)])
def test_masks_as_large_a_share_as_torchaudio(batch: int, frames: int) -> None:
    """Overlaps, and the equal count per row, make 0.57 (one row) to 0.51 (32 rows) of the nominal 0.8 at 15.6 s."""
    repeats = 60 // batch + 5
    ours = np.mean([span_mask(batch, frames, RECIPE, _rng(seed)).mean() for seed in range(60)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.mean(
            [
                _compute_mask_indices((batch, frames), None, 0.8, 10, min_masks=2).float().mean()
                for _ in range(repeats)
            ]
        )
    assert ours == pytest.approx(float(theirs), abs=0.02)


def test_is_made_of_spans() -> None:
    mask = span_mask(1, 780, RECIPE, _rng())[0]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
    runs = edges[1::2] - edges[::2]
    assert runs.min() == 10
    assert len(runs) > 10


def test_same_generator_state_gives_same_mask() -> None:
    assert np.array_equal(span_mask(4, 200, RECIPE, _rng(7)), span_mask(4, 200, RECIPE, _rng(7)))
    assert not np.array_equal(
        span_mask(4, 200, RECIPE, _rng(7)), span_mask(4, 200, RECIPE, _rng(8))
    )


def test_least_number_of_spans_holds_when_the_probability_is_small() -> None:
    sparse = MaskSpec(probability=0.001, length_frames=10, min_masks=3)
    assert 10 < span_mask(1, 500, sparse, _rng(1)).sum() <= 30


@pytest.mark.parametrize(("frames", "masked"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_rows_too_short_for_a_span(frames: int, masked: int) -> None:
    mask = span_mask(2, frames, RECIPE, _rng())
    assert mask.shape == (2, frames)
    assert mask.sum(axis=1).tolist() == [masked, masked]


@settings(max_examples=200, deadline=None)
@given(
    batch=st.integers(1, 6),
    frames=st.integers(2, 120),
    probability=st.floats(0.01, 1.0),
    length=st.integers(1, 40),
    min_masks=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_every_row_masks_equally_many_frames_but_never_all(
    batch: int, frames: int, probability: float, length: int, min_masks: int, seed: int
) -> None:
    counts = span_mask(batch, frames, MaskSpec(probability, length, min_masks), _rng(seed)).sum(
        axis=1
    )
    assert len(set(counts.tolist())) == 1
    assert 0 < counts[0] < frames
