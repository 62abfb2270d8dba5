"""Arrays that are not copied until they must be, and then are Flower's own."""

import numpy as np
import pytest
from flwr.app import Array, RecordDict

from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import LazyArray
from tests.flower import deflated, inflated, record_of


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
