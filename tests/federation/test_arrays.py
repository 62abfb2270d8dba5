"""Arrays that are not copied until they must be, and then are Flower's own."""

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedhubert.federation.wire.arrays import HeldArray


def test_on_the_wire_a_held_array_is_an_ordinary_one() -> None:
    values = np.arange(5000, dtype=np.float32).reshape(50, 100)
    held, plain = ArrayRecord(), ArrayRecord()
    held["model"], plain["model"] = HeldArray(values), Array(values)
    sent = {name: item.deflate() for name, item in get_all_nested_objects(RecordDict({"arrays": held})).items()}
    assert sent == {name: item.deflate() for name, item in get_all_nested_objects(RecordDict({"arrays": plain})).items()}
    arrived = inflate_object_from_contents(RecordDict({"arrays": held}).object_id, sent)
    assert isinstance(arrived, RecordDict)
    assert np.array_equal(arrived.array_records["arrays"]["model"].numpy(), values)
