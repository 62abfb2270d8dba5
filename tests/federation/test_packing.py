"""A message whose small parts travel as one: what arrives is what was sent, in few objects, and nothing else is taken for it."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from fedhubert.compose import compose
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.grid import PackingGrid
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Trained
from fedhubert.federation.wire.packing import (
    MOST_ARRAY_BYTES,
    MOST_BYTES,
    is_packed,
    pack,
    unpack,
)
from fedhubert.federation.wire.protocol import Asked
from tests.federation.in_process import InProcessGrid
from tests.flower import deflated, identify, inflated, record_of
from tests.fuzzing import budget, check, mutated, watchdog  # noqa: F401

from .signed import Keys, SignedGrid
from .signed_messages import with_content
from .test_signed_runs import model_of, run_settings, with_keys

LARGE = np.arange(MOST_ARRAY_BYTES, dtype=np.float32)
MALFORMED = Failure(-1, "malformed")
TRAINED = {
    "weight": 3,
    "update_norm": 1.0,
    "train_micro_batches": 1,
    "train_steps": 1,
    "train_audio_s": 8.0,
}
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
    many = {f"part_{number}": LARGE[: MOST_ARRAY_BYTES // 4] for number in range(5)}
    message = pack(sent(**many))
    within = sum(len(value) for value in message.content.config_records["packed"].values())
    assert MOST_BYTES - MOST_ARRAY_BYTES < within < MOST_BYTES + 2**12
    assert unpack(message)
    assert message.content.array_records["arrays"].keys() == many.keys()


def packed_by_hand(parts: Mapping[str, object], beside: RecordDict | None = None) -> Message:
    identify()
    content = RecordDict() if beside is None else beside
    content["packed"] = ConfigRecord({**parts})  # type: ignore[dict-item]
    return Message(content, 100, "train.round")


INFO, TAIL = ConfigRecord({"protocol": 5}).deflate(), Array(np.arange(7)).data
NO_RECORDS = {
    "no bytes": {"config info": "words"},
    "another kind of record": {"metric info": INFO},
    "a kind that there is not": {"pickle info": INFO},
    "half a record": {"config info": INFO[:-2]},
    "two of one name": {"config info": INFO, "metric info": MetricRecord({}).deflate()},
    "a record and arrays of one name": {"config info": INFO, "array info tail": TAIL},
    "packed once more": {"config packed": ConfigRecord({"config info": INFO}).deflate()},
    "an array of the record's name": {"array packed tail": TAIL},
    "too many": {f"array arrays {n}": Array(LARGE[: MOST_ARRAY_BYTES // 4]).data for n in range(3)},
}
BESIDE = {
    "a record": RecordDict({"info": ConfigRecord({})}),
    "an array twice": RecordDict({"arrays": ArrayRecord({"tail": Array(np.arange(7))})}),
}
REFUSED = {
    **{what: packed_by_hand(parts) for what, parts in NO_RECORDS.items()},
    **{
        f"{what} beside": packed_by_hand({"config more": INFO, "array arrays tail": TAIL}, content)
        for what, content in BESIDE.items()
    },
    "not the kind that it is": Message(
        RecordDict({"packed": MetricRecord({"loss": 1.0})}), 100, "train.round"
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_nobody_packs_is_refused(what: str, tmp_path: Path) -> None:
    message = over_a_wire(REFUSED[what])
    with pytest.raises(ValueError):
        unpack(message)
    assert is_packed(message)  # and what it was
    assert reading.read_reply(message, Trained).failures == (MALFORMED,)
    identify()
    grid = InProcessGrid([{"partition-id": 0, "num-partitions": 1, "state-dir": str(tmp_path)}])
    (number,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([number])
    assert is_packed(reply)
    assert reading.read_reply(reply, Trained).failures == (Failure(-1, "federation", "version"),)


def npy(descr: str, shape: str, values: bytes = b"", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + values


UPDATE = Array(np.arange(7, dtype=np.float32)).data
NO_ARRAYS = {
    "of no bytes": b"",
    "half": UPDATE[:-3],
    "a pickle": b"\x80\x04K\x01.",
    "large": Array(LARGE).data,
    "of no bytes an entry, so of any shape": npy("'<U0'", "(1099511627776,)"),
    "the same, in columns": npy("'|V0'", "(1048576, 1048576)", order="True"),
    "of parts of no bytes": npy("'(0,)f4'", "(1099511627776,)"),
    "of fields": npy("[('a', '<f4')]", "(1,)", b"\0" * 4),
}


@pytest.mark.parametrize("what", [None, *NO_ARRAYS])
def test_arrays_are_read_when_they_are_known_to_be_asked_for(what: str | None) -> None:
    reply = protocol.reply_of(
        sent(),
        metrics={1: TRAINED},
        arrays={"update": np.arange(7, dtype=np.float32)},
        info={"round": 3, "layout": "abc"},
    )
    content = pack(reply).content
    update = UPDATE if what is None else NO_ARRAYS[what]
    content.config_records["packed"]["array arrays update"] = update
    message = over_a_wire(with_content(reply, content))
    started = time.process_time()
    read = reading.read_reply(message, Trained, Asked([1], {"update": 4 * 7}))
    assert read.failures == (() if what is None else (MALFORMED,))
    assert time.process_time() - started < 0.5


def test_the_first_message_to_a_site_can_be_read_by_one_of_another_version() -> None:
    seen: list[tuple[str, bool]] = []

    class Watched(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            seen.extend((each.metadata.message_type, is_packed(each)) for each in messages)
            return []

    grid = PackingGrid(Watched([]))
    for kind in ("query.describe", "train.round"):
        grid.push_messages([with_content(sent(), sent().content, kind)])
    assert seen == [("query.describe", False), ("train.round", True)]


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
