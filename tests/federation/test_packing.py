"""A message whose small parts travel as one: what arrives is what was sent, in few objects, and nothing else is taken for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from fedhubert.compose import compose
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.wire import reading
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.grid import PackingGrid
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Trained
from fedhubert.federation.wire.packing import MOST_BYTES, SMALL_BYTES, is_packed, pack, unpack
from tests.federation.in_process import InProcessGrid
from tests.flower import deflated, identify, inflated, record_of
from tests.fuzzing import budget, check, mutated, watchdog  # noqa: F401

from .signed import Keys, SignedGrid
from .signed_messages import with_content
from .test_signed_runs import model_of, run_settings, with_keys

LARGE = np.arange(SMALL_BYTES, dtype=np.float32)
SMALL = {
    "tail": np.arange(7),
    "words": np.zeros((3, 2, 16), np.uint8),
    "none": np.array(2.5),
    "empty": np.zeros((0, 4), np.float32),
    "columns first": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
}


def sent(**arrays: np.ndarray[Any, Any]) -> Message:
    identify()
    content = RecordDict(
        {
            "info": ConfigRecord({"protocol": 5, "round": 2, "share": 0.25, "key": b"\0\1"}),
            "metrics": MetricRecord({"partition": [3, 4], "loss": [0.1, 2.0**40]}),
        }
    )
    if arrays:
        content["arrays"] = record_of(**{name: HeldArray(array) for name, array in arrays.items()})
    return Message(content, 100, "train.round")


def over_a_wire(message: Message) -> Message:
    content = inflated(message.content.object_id, deflated(message.content))
    return with_content(message, content)


@pytest.mark.parametrize("arrays", [{}, SMALL, {"model": LARGE}, {**SMALL, "model": LARGE}])
def test_what_arrives_is_what_was_sent(arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    plain, message = sent(**arrays), over_a_wire(pack(sent(**arrays)))
    assert is_packed(message) and unpack(message) and not is_packed(message)
    assert not unpack(message)
    for name in ("info", "metrics"):
        assert dict(message.content[name]) == dict(plain.content[name])
    there = message.content.array_records.get("arrays", {})
    assert there.keys() == arrays.keys()
    for name, array in arrays.items():
        arrived = there[name].numpy()
        assert arrived.dtype == array.dtype and np.array_equal(arrived, array)


def test_small_parts_are_one_object_and_large_ones_what_they_were() -> None:
    plain, packed = sent(**SMALL), pack(sent(**SMALL))
    assert len(deflated(plain.content)) == 1 + 2 + 1 + 2 * len(SMALL)
    assert len(deflated(packed.content)) == 1 + 1
    model = HeldArray(LARGE)
    message = sent()
    message.content["arrays"] = record_of(model=model, tail=HeldArray(np.arange(7)))
    content = pack(message).content
    assert content.array_records["arrays"]["model"] is model
    assert set(content.array_records["arrays"]) == {"model"}
    once = content["packed"]
    assert pack(message).content["packed"] is once


def test_many_small_arrays_stay_within_a_bound() -> None:
    many = {f"part_{number}": LARGE[: SMALL_BYTES // 4] for number in range(80)}
    message = pack(sent(**many))
    within = sum(len(value) for value in message.content.config_records["packed"].values())
    assert MOST_BYTES - 2**16 < within < MOST_BYTES + 2**12
    assert unpack(message)
    assert message.content.array_records["arrays"].keys() == many.keys()


def packed_by_hand(beside: RecordDict | None = None, **parts: object) -> Message:
    identify()
    content = RecordDict() if beside is None else beside
    content["packed"] = ConfigRecord(
        {name.replace("_", " "): value for name, value in parts.items()}  # type: ignore[misc]
    )
    return Message(content, 100, "train.round")


INFO, TAIL = ConfigRecord({"protocol": 5}).deflate(), Array(np.arange(7)).data
REFUSED = {
    "no bytes": packed_by_hand(config_info="words"),
    "another kind of record": packed_by_hand(metric_info=INFO),
    "a kind that there is not": packed_by_hand(pickle_info=INFO),
    "no record": packed_by_hand(config_info=INFO[:-2]),
    "two of one name": packed_by_hand(config_info=INFO, metric_info=MetricRecord({}).deflate()),
    "a record and arrays of one name": packed_by_hand(config_info=INFO, array_info_tail=TAIL),
    "an array of no bytes": packed_by_hand(array_arrays_tail=b""),
    "half of an array": packed_by_hand(array_arrays_tail=TAIL[:-3]),
    "an array that is large": packed_by_hand(array_arrays_tail=Array(LARGE).data),
    "too many": packed_by_hand(
        **{f"array_arrays_{n}": Array(LARGE[: SMALL_BYTES // 4]).data for n in range(33)}
    ),
    "a pickle": packed_by_hand(array_arrays_tail=b"\x80\x04K\x01."),
    "a record beside": packed_by_hand(RecordDict({"info": ConfigRecord({})}), config_more=INFO),
    "an array twice": packed_by_hand(
        RecordDict({"arrays": ArrayRecord({"tail": Array(np.arange(7))})}), array_arrays_tail=TAIL
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_nobody_packs_is_refused(what: str, tmp_path: Path) -> None:
    message = over_a_wire(REFUSED[what])
    with pytest.raises(ValueError):
        unpack(message)
    assert reading.read_reply(message, Trained).failures == (Failure(-1, "malformed"),)
    identify()
    grid = InProcessGrid([{"partition-id": 0, "num-partitions": 1, "state-dir": str(tmp_path)}])
    (number,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([number])
    assert is_packed(reply)
    assert reading.read_reply(reply, Trained).failures == (Failure(-1, "federation", "version"),)


@budget(300, 5000)
def test_any_bytes_as_a_reply(examples: int) -> None:
    parts = pack(sent(**SMALL)).content.config_records["packed"]

    def holds(draw: DataObject) -> None:
        name = draw.draw(st.sampled_from(sorted(parts)))
        changed = {**parts, name: draw.draw(mutated(bytes(parts[name])))}  # type: ignore[arg-type]
        message = Message(RecordDict({"packed": ConfigRecord(changed)}), 1, "train.round")
        reading.read_reply(message, Trained)

    check(examples, st.data(), holds)


def test_a_signed_run_is_the_same_and_carries_nothing_else(
    keys: Keys, tone_folder: Path, tmp_path: Path
) -> None:
    overrides = [*run_settings(tone_folder, tmp_path), *with_keys(keys)]
    objects: dict[str, list[int]] = {"plain": [], "packed": []}
    for name, counted in objects.items():
        grid = SignedGrid(keys, tmp_path / name)

        def count(node: int, message: Message, counted: list[int] = counted) -> Message:
            counted.append(len(deflated(message.content)))
            return message

        grid.on_request = grid.on_reply = count
        wrapped = PackingGrid(grid) if name == "packed" else grid
        run_federation(wrapped, compose([*overrides, f"out={tmp_path / name}"]))
    plain, packed = model_of(tmp_path / "plain"), model_of(tmp_path / "packed")
    assert all((plain[name] == packed[name]).all() for name in plain)
    assert len(objects["plain"]) == len(objects["packed"])
    assert sum(objects["packed"]) < 0.5 * sum(objects["plain"])
