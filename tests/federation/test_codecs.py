"""What a vector is after it has travelled."""

import numpy as np
import pytest
import torch

from fedhubert.federation.updates.codecs import channels, decode, encode, num_bytes
from fedhubert.federation.updates.exact_sum import UpdateRejected

SHAPES = ((6, 5, 3), (7,), (4, 2), ())
NUMEL = 6 * 15 + 7 + 8 + 1
RANGES = torch.cat(
    [
        torch.linspace(1e-6, 1e-2, 6).repeat_interleave(15),
        torch.ones(7),
        torch.zeros(4),
        torch.ones(4),
        torch.ones(1),
    ]
)


@pytest.fixture()
def vector() -> torch.Tensor:
    """Rows of very different ranges, one of zeros."""
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(0)) * RANGES


def test_float32_travels_as_it_is(vector: torch.Tensor) -> None:
    assert torch.equal(decode("fp32", encode("fp32", vector, SHAPES), SHAPES), vector)


@pytest.mark.parametrize(
    ("codec", "bytes_each", "error"),
    [("bf16", 2, 2**-8), ("fp16", 2, 2**-11), ("int8", 1, 1 / 127)],
)
def test_lossy_codecs_keep_to_their_error(
    vector: torch.Tensor, codec: str, bytes_each: int, error: float
) -> None:
    arrays = encode(codec, vector, SHAPES, seed=3)  # type: ignore[arg-type]
    assert arrays["update"].nbytes == bytes_each * NUMEL
    decoded = decode(codec, arrays, SHAPES)  # type: ignore[arg-type]
    assert decoded.dtype == torch.float32
    allowed = vector.abs() * error
    if codec == "int8":
        lengths, _ = channels(SHAPES)
        peaks = torch.stack([part.abs().max() for part in torch.split(vector, lengths.tolist())])
        allowed = peaks.repeat_interleave(lengths) * error * 1.001
    elif codec == "fp16":
        allowed = allowed + float(vector.abs().max()) * 2.0**-38  # the smallest of float16, scaled
    assert bool(((decoded - vector).abs() <= allowed).all())


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16", "int8"])
def test_bytes_are_known_beforehand(vector: torch.Tensor, codec: str) -> None:
    arrays = encode(codec, vector, SHAPES)  # type: ignore[arg-type]
    assert num_bytes(codec, SHAPES) == sum(array.nbytes for array in arrays.values())  # type: ignore[arg-type]


def test_int8_rounds_without_bias_and_by_its_seed(vector: torch.Tensor) -> None:
    mean = torch.stack(
        [decode("int8", encode("int8", vector, SHAPES, seed), SHAPES) for seed in range(400)]
    ).mean(dim=0)
    step = RANGES * 4 / 127
    assert bool(
        ((mean - vector).abs() <= step * 0.2).all()
    )  # a tenth of a step is four standard errors
    one, same, other = (encode("int8", vector, SHAPES, seed)["update"] for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_an_int8_channel_is_an_output_and_a_vector_is_one(vector: torch.Tensor) -> None:
    lengths, counts = channels(SHAPES)
    assert lengths.tolist() == [15] * 6 + [7] + [2] * 4 + [1] and counts == [6, 1, 4, 1]
    assert encode("int8", vector, SHAPES)["scales"].shape == (12,)


@pytest.mark.parametrize("codec", ["bf16", "fp16", "int8", "fp32"])
def test_nothing_at_all_and_not_a_number_survive(codec: str) -> None:
    zeros = torch.zeros(NUMEL)
    assert torch.equal(decode(codec, encode(codec, zeros, SHAPES), SHAPES), zeros)  # type: ignore[arg-type]
    spoilt = torch.ones(NUMEL)
    spoilt[3] = torch.nan
    try:
        assert not bool(torch.isfinite(decode(codec, encode(codec, spoilt, SHAPES), SHAPES)).all())  # type: ignore[arg-type]
    except UpdateRejected as rejected:
        assert rejected.reason == "not_finite"


@pytest.mark.parametrize("codec", ["bf16", "fp16", "int8", "fp32"])
def test_arrays_of_another_kind_are_rejected(vector: torch.Tensor, codec: str) -> None:
    good = encode(codec, vector, SHAPES)  # type: ignore[arg-type]
    bad = [
        {**good, "update": good["update"][:-1]},
        {**good, "update": good["update"].reshape(1, -1)},
        {**good, "update": good["update"].astype(np.float64)},
        {},
    ]
    if "scales" in good:
        bad += [
            {**good, "scales": good["scales"][:-1]},
            {**good, "scales": np.full_like(good["scales"], np.inf)},
            {**good, "scales": -good["scales"]},
            {"update": good["update"]},
        ]
    for arrays in bad:
        with pytest.raises(UpdateRejected):
            decode(codec, arrays, SHAPES)  # type: ignore[arg-type]
