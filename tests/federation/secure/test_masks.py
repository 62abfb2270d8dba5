"""Streams of masks, and secrets in shares."""

import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.federation.secure.masks import add_masks
from fedhubert.federation.secure.shares import PRIME, commitment, join, split, weights_of

LONG = 2**21 + 300_001
"""More than a segment of 8-byte words, then more than two chunks, and no whole number of blocks."""


def test_a_mask_is_the_key_stream_of_aes_in_counter_mode() -> None:
    seed, vector = secrets.token_bytes(32), np.arange(LONG)
    add_masks(vector, [seed], part=1)
    expected = []
    for segment, length in enumerate([2**24, 8 * LONG - 2**24]):
        first = (1).to_bytes(4, "big") + segment.to_bytes(8, "big") + (2).to_bytes(4, "big")
        stream = Cipher(algorithms.AES256(seed), modes.CTR(first)).encryptor()
        expected.append(np.frombuffer(stream.update(bytes(length)), "<u8"))
    expected_words = np.arange(LONG, dtype=np.uint64) + np.concatenate(expected)
    assert (vector.view(np.uint64) == expected_words).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint16, np.uint8])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_masks_come_off_again_with_any_number_of_threads(dtype: type, threads: int) -> None:
    plus, minus = ([secrets.token_bytes(32) for _ in range(count)] for count in (3, 2))
    vector = np.zeros(LONG, dtype)
    add_masks(vector, plus, minus, threads=threads)
    assert (vector != 0).mean() > 0.99
    for seed in plus:
        add_masks(vector, [], [seed])
    add_masks(vector, minus, threads=2)
    assert not vector.any()


def test_a_masked_vector_of_zeros_is_uniform() -> None:
    vector = np.zeros(2**17, np.int64)
    add_masks(vector, [secrets.token_bytes(32)], [secrets.token_bytes(32)])
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())  # 255 degrees: 255 +- 22.6
    assert 255 - 8 * 22.6 < chi_squared < 255 + 8 * 22.6
    assert abs(np.corrcoef(vector[:-1].astype(float), vector[1:].astype(float))[0, 1]) < 0.02


def test_the_parts_of_a_seed_have_streams_of_their_own() -> None:
    seed, one, two = secrets.token_bytes(32), np.zeros(999, np.int64), np.zeros(999, np.int64)
    add_masks(one, [seed], part=0)
    add_masks(two, [seed], part=1)
    assert not (one == two).any()


def test_an_empty_vector_has_nothing_to_mask() -> None:
    add_masks(np.zeros(0, np.int64), [bytes(32)])


@settings(max_examples=30, deadline=None)
@given(secret=st.binary(min_size=32, max_size=32), helpers=st.integers(1, 9), data=st.data())
def test_any_threshold_of_shares_gives_the_secret(
    secret: bytes, helpers: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, helpers))
    shares = split(secret, threshold, helpers)
    places = data.draw(st.permutations(range(helpers)))[:threshold]
    assert join({place: shares[place] for place in places}) == secret


def test_fewer_shares_than_the_threshold_fit_any_secret() -> None:
    """With one share missing there is, for every secret, a last share that gives it."""
    shares = split(secrets.token_bytes(32), 3, 5)
    known, wanted = {0: shares[0], 3: shares[3]}, 12345
    weights = weights_of([0, 3, 4])
    so_far = sum(
        int.from_bytes(share) * weight
        for share, weight in zip(known.values(), weights[:2], strict=True)
    )
    missing = (wanted - so_far) * pow(weights[2], -1, PRIME) % PRIME
    assert join({**known, 4: missing.to_bytes(33)}, weights) == wanted.to_bytes(32)


def test_shares_of_no_secret_are_none() -> None:
    assert join({0: (PRIME - 1).to_bytes(33)}) is None


def test_a_changed_share_does_not_fit_its_commitment() -> None:
    share = split(secrets.token_bytes(32), 2, 3)[0]
    changed = bytes([share[0], share[1] ^ 1, *share[2:]])
    assert commitment(share) != commitment(changed)
