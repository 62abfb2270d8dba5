"""Integers on a ring: what comes of a sum of them, in any order, in shards, and behind masks that cancel."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedhubert.federation.updates.exact_sum import UpdateRejected
from fedhubert.federation.updates.ring import (
    RING_BITS,
    Ring,
    of_ring,
    pack,
    ring_bytes,
    to_ring,
    unpack,
    wrapped,
)

rings = st.builds(
    Ring,
    bits=st.sampled_from(sorted(RING_BITS.values())),
    clip=st.floats(1e-6, 1e6),
    summands=st.integers(1, 1000),
    max_weight=st.integers(1, 2**28),
)
NUMEL = 50


def updates(count: int, seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(NUMEL, generator=generator) for _ in range(count)]


@given(rings, st.data())
@settings(max_examples=150, deadline=None)
def test_a_sum_of_as_many_as_there_may_be_never_wraps(ring: Ring, data: st.DataObject) -> None:
    """Not even where every entry of everybody is cut off, at either end."""
    headroom = data.draw(st.sampled_from([0.0, ring.clip, 3.0 * ring.clip]))
    ring = Ring(ring.bits, ring.clip, ring.summands, ring.max_weight, headroom)
    sign = data.draw(st.sampled_from([-1.0, 1.0]))
    one = to_ring(torch.full((3,), sign * 3e38), ring.max_weight, ring)
    spare = int(np.ceil(headroom / ring.step))
    assert one.clipped == 3
    assert ring.summands * int(one.integers.abs().max()) + spare <= 2 ** (ring.bits - 1) - 1


@given(rings, st.integers(0, 2**31), st.data())
@settings(max_examples=150, deadline=None)
def test_a_mean_is_within_half_a_step_of_each_client(
    ring: Ring, seed: int, data: st.DataObject
) -> None:
    """The bound that the chapter states: D / 2 for each of n clients, over their weights; and D w_max / w of one client's own."""
    count = data.draw(st.integers(1, min(8, ring.summands)))
    weights = [data.draw(st.integers(1, ring.max_weight)) for _ in range(count)]
    sent = [u.clamp(-ring.clip, ring.clip) * 0.999 for u in updates(count, seed, ring.clip)]
    integers = [to_ring(u, w, ring) for u, w in zip(sent, weights, strict=True)]
    assume(ring.largest >= 1)
    slack = ring.unit  # an entry as large as `clip` is cut off by less than a step, where 2**bits is no multiple of n
    total = sum((each.integers for each in integers), torch.zeros(NUMEL, dtype=torch.int64))
    exact = sum(u.double() * w for u, w in zip(sent, weights, strict=True)) / sum(weights)
    error = (of_ring(total, sum(weights), ring).double() - exact).abs()
    allowed = count * (0.5 * ring.unit + slack) / sum(weights) + exact.abs() * 2.0**-23
    assert bool((error <= allowed).all())


@given(st.sampled_from(sorted(RING_BITS.values())), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_order_shards_and_masks_change_no_bit(bits: int, seed: int) -> None:
    ring = Ring(bits, clip=4.0, summands=5, max_weight=1000)
    rng = np.random.default_rng(seed)
    weights = [int(w) for w in rng.integers(1, 1001, 5)]
    integers = [
        to_ring(u, w, ring).integers for u, w in zip(updates(5, seed), weights, strict=True)
    ]
    plain = torch.stack(integers).sum(0)
    order = rng.permutation(5)
    shards = [torch.stack([integers[i] for i in part]).sum(0) for part in (order[:2], order[2:])]
    carried = [unpack(pack(shard, bits), bits, NUMEL) for shard in shards]
    assert torch.equal(sum(carried, torch.zeros_like(plain)), plain)

    masked = [each.numpy().copy() for each in integers]
    for i, j in itertools.combinations(range(5), 2):
        mask = rng.integers(0, 2**bits, NUMEL)
        masked[i], masked[j] = masked[i] + mask, masked[j] - mask
    sent = [unpack(pack(torch.from_numpy(each), bits), bits, NUMEL) for each in masked]
    opened = wrapped(torch.stack(sent).sum(0), bits)
    assert torch.equal(opened, plain)
    assert torch.equal(of_ring(opened, sum(weights), ring), of_ring(plain, sum(weights), ring))
    # and a masked one has nothing of what is behind it, by correlation
    if bits > 16:
        noise = sent[0].double().numpy()
        assert abs(np.corrcoef(noise, integers[0].numpy())[0, 1]) < 0.7


@given(st.sampled_from(sorted(RING_BITS.items())), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_what_travels_is_what_was_sent(codec: tuple[str, int], numel: int, seed: int) -> None:
    name, bits = codec
    half = 2 ** (bits - 1)
    integers = torch.from_numpy(np.random.default_rng(seed).integers(-half, half, numel))
    array = pack(integers, bits)
    assert array.nbytes == ring_bytes(name, numel) == bits // 8 * numel
    assert torch.equal(unpack(array, bits, numel), integers)
    for wrong in (None, array[:-1], array.astype(np.int64), array.reshape(1, -1)):
        with pytest.raises(UpdateRejected):
            unpack(wrong, bits, numel)


def test_what_is_cut_off_is_counted_and_what_is_no_number_refused() -> None:
    ring = Ring(32, clip=1.0, summands=3, max_weight=2)
    sent = to_ring(torch.tensor([0.5, -2.0, 1.0, 7.0, 0.0]), 2, ring)
    assert sent.clipped == 2
    back = of_ring(sent.integers, 2, ring)
    assert back.tolist() == pytest.approx([0.5, -1.0, 1.0, 1.0, 0.0], abs=1e-8)
    # a lighter update may be larger: what counts is what it adds
    assert to_ring(torch.tensor([2.0]), 1, ring).clipped == 0
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(UpdateRejected, match="not_finite"):
            to_ring(torch.tensor([0.0, bad]), 1, ring)
    for weight in (0, 3, -1):
        with pytest.raises(UpdateRejected, match="weight"):
            to_ring(torch.zeros(1), weight, ring)


def test_a_norm_holds_after_rounding() -> None:
    ring = Ring(16, clip=0.1, summands=10, max_weight=1)
    update = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    norm = 0.9
    update *= ring.within(norm, update.numel()) / float(update.double().norm())
    rounded = to_ring(update, 1, ring).integers.double() * ring.unit
    assert float(rounded.norm()) <= norm
    with pytest.raises(UpdateRejected, match="range"):
        Ring(16, clip=1.0, summands=1000, max_weight=1).within(0.1, 10**6)


@pytest.mark.parametrize("clients", [5, 50])
@pytest.mark.parametrize("bits", [32, 24, 16])
def test_the_error_of_a_mean_is_that_of_its_rounding(bits: int, clients: int) -> None:
    """D / sqrt(12 n) an entry, as of n independent roundings to D, beside float32's own; what the chapter's table is of."""
    generator = torch.Generator().manual_seed(1)
    sent = [torch.randn(100_000, generator=generator) for _ in range(clients)]
    ring = Ring(bits, max(float(u.abs().max()) for u in sent), clients, max_weight=1)
    total = torch.stack([to_ring(u, 1, ring).integers for u in sent]).sum(0)
    exact = torch.stack(sent).double().mean(0)
    found = float((of_ring(total, clients, ring).double() - exact).norm() / exact.norm())
    float32 = float((exact.float().double() - exact).norm() / exact.norm())
    rms = float(exact.square().mean().sqrt())
    expected = float(np.hypot(ring.step / np.sqrt(12 * clients) / rms, float32))
    print(f"ring{bits}, {clients} clients: {found:.2g} of the mean's norm")
    assert found == pytest.approx(expected, rel=0.05)
