"""Arrays that are not copied until they must be, and then are Flower's own."""

import hashlib
import io
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, RecordDict

from fedhubert.federation.wire.arrays import (
    ArrivedArray,
    HeldArray,
    put_together_once,
    size_on_wire,
)
from fedhubert.federation.wire.flower import LazyArray, chunks
from tests.flower import deflated, inflated, kinds_that_arrive, pieces_of, raw_array, record_of


class Uncached(HeldArray):
    """As in a Flower that keeps an array's pieces somewhere else."""

    def slice_array(self):  # type: ignore[no-untyped-def]
        pieces = super().slice_array()
        del self.__dict__["_chunks"]
        return pieces


@pytest.mark.parametrize("kind", [HeldArray, Uncached])
def test_on_the_wire_a_held_array_is_an_ordinary_one(kind: type[LazyArray]) -> None:
    values = np.arange(5000, dtype=np.float32).reshape(50, 100)
    held, plain = (
        RecordDict({"arrays": record_of(model=array)}) for array in (kind(values), Array(values))
    )
    sent = deflated(held)
    assert sent == deflated(plain)
    assert np.array_equal(
        inflated(held.object_id, sent).array_records["arrays"]["model"].numpy(), values
    )


ARRAYS = {
    "two dimensions": np.arange(5000, dtype=np.float32).reshape(50, 100),
    "none": np.array(3.0),
    "no values": np.zeros((3, 0, 2)),
    "columns first": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "every second": np.arange(3000)[::2],
    "big-endian": np.arange(10, dtype=">i4"),
    "half": np.arange(700, dtype=np.float16),
}


@pytest.fixture
def arriving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have arrays arrive in this process as in a server's or a site's; not after this test."""
    for name, kind in kinds_that_arrive().items():
        monkeypatch.setitem(kinds_that_arrive(), name, kind)
    put_together_once()


@pytest.mark.parametrize("piece_bytes", [200, 1000, 5 * 2**20])
@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
def test_pieces_are_those_of_flower(
    values: npt.NDArray[np.generic], piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", piece_bytes)
    assert pieces_of(HeldArray(values), piece_bytes) == pieces_of(Array(values), piece_bytes)


def test_pieces_are_hashed_once_for_any_number_of_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array, hashed = HeldArray(np.ones(1000, np.float32)), []

    def sha256(head: bytes) -> object:
        hashed.append(head)
        return hashlib.sha256(head)

    monkeypatch.setattr(chunks, "hashlib", SimpleNamespace(sha256=sha256))
    ids = {RecordDict({"arrays": record_of(model=array)}).object_id for _ in range(3)}
    assert len(ids) == 1 and hashed == [b"ArrayChunk  4128\0"]


@pytest.mark.usefixtures("arriving")
@pytest.mark.parametrize("piece_bytes", [200, 2**20])
@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
def test_what_arrives_is_what_was_sent(
    values: npt.NDArray[np.generic], piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", piece_bytes)
    sent = RecordDict({"arrays": record_of(model=HeldArray(values), again=HeldArray(values))})
    record = inflated(sent.object_id, deflated(sent)).array_records["arrays"]
    came = record["model"]
    assert isinstance(came, ArrivedArray) and list(record) == ["model", "again"]
    assert size_on_wire(came) == len(Array(values).data)
    assert np.array_equal(came.numpy(), values) and came.numpy().dtype == values.dtype
    assert came.numpy().flags.writeable and came.numpy().flags.aligned
    if values.flags.c_contiguous:  # it can be sent on
        assert RecordDict({"arrays": record}).object_id == sent.object_id


def written(values: npt.NDArray[np.generic], version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version)
    return buffer.getvalue()


FLOATS = written(np.arange(4.0))
WRONG = {
    "nothing": b"",
    "no array": b"x" * 200,
    "cut in its head": FLOATS[:50],
    "cut": FLOATS[:-1],
    "longer": FLOATS + b"1",
    "objects": written(np.array([None])),
    "another version": written(np.arange(4.0), (2, 0)),
    "more than there is": FLOATS.replace(b"(4,)", b"(9,)"),
    "a shape that there is not": FLOATS.replace(b"(4,), }   ", b"(-2,-2), }"),
    "code for a head": FLOATS.replace(b"(4,)", b"f()"),
}


@pytest.mark.usefixtures("arriving")
@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_what_is_no_array_is_none(content: bytes) -> None:
    sent = RecordDict({"arrays": record_of(model=raw_array(content))})
    came = inflated(sent.object_id, deflated(sent)).array_records["arrays"]["model"]
    with pytest.raises(ValueError):
        came.numpy()


@pytest.mark.usefixtures("arriving")
def test_bytes_of_another_kind_are_not_read() -> None:
    sent = RecordDict({"arrays": record_of(model=raw_array(FLOATS, stype="pickle"))})
    came = inflated(sent.object_id, deflated(sent)).array_records["arrays"]["model"]
    with pytest.raises(TypeError, match="pickle"):
        came.numpy()


@pytest.mark.usefixtures("arriving")
def test_a_piece_that_is_named_a_million_times_is_not_put_together_to_be_measured() -> None:
    (piece,) = (piece for _, piece in HeldArray(np.zeros(10**5, np.float32)).slice_array())
    came = ArrivedArray("float32", (10**11,), "numpy.ndarray", [piece.data] * 10**6)
    assert size_on_wire(came) > 4 * 10**11
