"""Messages of any content, at a site and at the server."""

import copy
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from fedhubert.compose import compose
from fedhubert.config import ClientJob, from_json
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.site import incoming as client_round
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import reading
from fedhubert.federation.wire.messages import ANSWERS, INSTRUCTIONS
from fedhubert.formats.round_file import load_checkpoint
from tests.federation.in_process import InProcessGrid, open_policy
from tests.flower import identify, raw_array
from tests.fuzzing import budget, check, mutated, watchdog  # noqa: F401
from tests.integration.conftest import SMALL

SMALL_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 4),
    st.floats(-2.0, 2.0),
    st.sampled_from(
        [math.nan, math.inf, "", "x", "../x", "\0", [], {}, [1], {"a": 1}, 2**70, "layer:1", "none"]
    ),
    st.text(max_size=6),
).map(copy.deepcopy)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in nested dicts and lists."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


def changed(draw: DataObject, value: Any) -> Any:
    """Return ``value`` with up to three of its parts put in a different way, or left out."""
    for _ in range(draw.draw(st.integers(1, 3))):
        path = draw.draw(st.sampled_from(list(places(value))))
        if not path:
            if draw.draw(st.integers(0, 20)) == 0:
                return draw.draw(SMALL_VALUES)
            continue
        place = value
        for key in path[:-1]:
            place = place[key]
        if isinstance(place, dict) and draw.draw(st.booleans()):
            del place[path[-1]]
        else:
            place[path[-1]] = draw.draw(SMALL_VALUES)
    return value


@budget(400, 4000)
def test_the_configuration_of_a_request(examples: int) -> None:
    whole = client_job(compose(["experiment=demo_distill", *SMALL, "task.teacher=x"])).model_dump(
        mode="json"
    )
    check(
        examples,
        st.data(),
        lambda draw: from_json(ClientJob, json.dumps(changed(draw, json.loads(json.dumps(whole))))),
    )
    check(examples, st.text(max_size=60), lambda text: from_json(ClientJob, text))
    check(1, st.just("[" * 100_000), lambda text: from_json(ClientJob, text))


ARRAYS = st.sampled_from(
    [
        np.zeros(0, np.float32),
        np.zeros((), np.float32),
        np.zeros((2, 3)),
        np.full(5, np.nan, np.float32),
        np.full((6, 39), np.inf, np.float32),
        np.full((8, 39), 3e38, np.float32),
        np.full((8, 39), 1e30, np.float32),
        np.array(["text"]),
        np.zeros(3, np.complex64),
        np.zeros(3, ">f4"),
        np.full(8, 2**62),
        np.full(8, -1),
        np.ones((8, 39), np.int64),
        np.zeros((1, 1, 1, 1), np.float32),
        np.zeros(3, np.bool_),
    ]
)


def raw(draw: DataObject) -> Array:
    """An array whose bytes and description need not be true."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(4, np.float32))
    content = draw.draw(st.one_of(mutated(buffer.getvalue()), st.just(b"PK\x03\x04" + b"\0" * 50)))
    shape, stype = (
        draw.draw(st.sampled_from([(4,), (2**50,), ()])),
        draw.draw(st.sampled_from(["numpy.ndarray", "x"])),
    )
    return raw_array(content, shape=shape, stype=stype)


def disturb(draw: DataObject, content: RecordDict) -> None:
    """Change records of a message: entries left out, put in, of another type, length or size; arrays of any kind."""
    for _ in range(draw.draw(st.integers(1, 2))):
        if not content:
            return
        name = draw.draw(st.sampled_from(sorted(content)))
        if draw.draw(st.integers(0, 9)) == 0:
            del content[name]
            continue
        record = content[name]
        keys = sorted(record)
        key = draw.draw(st.sampled_from([*keys, "other"]))
        if draw.draw(st.integers(0, 4)) == 0:
            record.pop(key, None)
        elif isinstance(record, ArrayRecord):
            record[key] = (
                raw(draw) if draw.draw(st.integers(0, 2)) == 0 else Array(draw.draw(ARRAYS))
            )
        elif isinstance(record, MetricRecord):
            whole = st.one_of(st.integers(-5, 5), st.sampled_from([2**62, -(2**62)]))
            numbers = draw.draw(
                st.sampled_from([whole, st.sampled_from([math.nan, math.inf, -1.5, 1e300, 0.0])])
            )
            record[key] = draw.draw(st.one_of(numbers, st.lists(numbers, max_size=3)))
        else:
            texts = st.one_of(
                st.text(max_size=8), st.sampled_from(["../x", "\x1b[2J\n", "9" * 30, "-1"])
            )
            record[key] = draw.draw(
                st.one_of(
                    texts,
                    st.integers(-5, 2**62),
                    st.floats(),
                    st.binary(max_size=5),
                    st.lists(texts, max_size=3),
                    st.lists(st.integers(0, 5), max_size=3),
                )
            )


@pytest.fixture(scope="module")
def recorded(
    tone_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[InProcessGrid, list[str], Path]:
    """A run of three sites, one round; what it was of, and where its sites keep their state."""
    identify()
    from fedhubert.cli import main

    folder = tmp_path_factory.mktemp("recorded")
    nodes: list[dict[str, str | int]] = []
    for number in range(3):
        manifest, root = folder / f"{number}.csv", tone_folder / f"speaker{number}"
        assert main(["prepare", "folder", "--root", str(root), "--out", str(manifest)]) == 0
        nodes.append(
            {
                "partition-id": number,
                "num-partitions": 3,
                "manifest": str(manifest),
                "audio-root": str(root),
                "state-dir": str(folder / "state"),
                "policy": open_policy(folder),
            }
        )
    overrides = [
        "experiment=demo_fedavg",
        *SMALL,
        "federated.num_rounds=1",
        "federated.round_retries=0",
        "client.local_steps=1",
        "data.num_workers=0",
    ]
    grid = InProcessGrid(nodes)
    run_federation(grid, compose([*overrides, f"out={folder / 'out'}"]))
    return grid, overrides, folder


def copied(message: Message) -> RecordDict:
    content = RecordDict()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            content[name] = ArrayRecord(
                {key: Array(np.array(array.numpy())) for key, array in record.items()}
            )
        else:
            content[name] = type(record)(
                {
                    key: list(value) if isinstance(value, list) else value
                    for key, value in record.items()
                }
            )
    return content


@budget(300, 5000)
def test_requests_at_a_site(recorded: Any, examples: int) -> None:
    """A site always answers, with a code that says what is wrong."""
    grid = recorded[0]

    def holds(draw: DataObject) -> None:
        message = draw.draw(st.sampled_from(grid.requests))
        content = copied(message)
        record = content["request"]
        for part in ("job", "task"):
            if draw.draw(st.integers(0, 3)) == 0:
                record[part] = json.dumps(changed(draw, json.loads(record[part])))
        if draw.draw(st.booleans()):
            disturb(draw, content)
        node = message.metadata.dst_node_id
        request = Message(content, node, message.metadata.message_type)
        reply = grid.app(request, Context(1, node, dict(grid.configs[node]), RecordDict(), {}))
        for failure in reading.read_reply(
            reply, ANSWERS[INSTRUCTIONS[message.metadata.message_type]]
        ).failures:
            assert failure.code not in ("internal", "malformed"), (
                recorded[2] / "state/site.log"
            ).read_text()[-3000:]

    check(examples, st.data(), holds)


class Replayed(InProcessGrid):
    """Sites that say what they said before, but for one reply."""

    def __init__(
        self, grid: InProcessGrid, disturbed: int, change: Callable[[RecordDict], None]
    ) -> None:
        super().__init__(list(grid.configs.values()))
        self._replies: dict[tuple[int, str], list[int]] = defaultdict(list)
        for index, message in enumerate(grid.requests):
            self._replies[message.metadata.dst_node_id, message.metadata.message_type].append(index)
        self._grid, self._disturbed, self._change = grid, disturbed, change
        self.app = self._answer  # type: ignore[assignment]

    def _answer(self, message: Message, context: Context) -> Message:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        left = self._replies[node, kind]
        index = left.pop(0) if len(left) > 1 else left[0]
        content = copied(self._grid.answers[index])
        if index == self._disturbed:
            self._change(content)
        return Message(content, reply_to=message)


@budget(60, 3000)
def test_replies_at_the_server(
    recorded: Any, tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    """One reply that is not what a site would say ends the run with a named error, or is left out; never a traceback, never NaN in the model."""
    grid, overrides, _ = recorded
    config = compose([*overrides, "federated.connect_timeout_s=2"])
    client_round._cached = None

    def holds(draw: DataObject) -> None:
        out = tmp_path_factory.mktemp("out")
        index = draw.draw(st.integers(0, len(grid.answers) - 1))
        replayed = Replayed(grid, index, lambda content: disturb(draw, content))
        result = run_federation(replayed, config.model_copy(update={"out": str(out)}))
        model = load_checkpoint(result.checkpoint)["model"]
        assert all(torch.isfinite(tensor).all() for tensor in model.values())
        for line in (out / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} in metrics.jsonl"))

    check(examples, st.data(), holds)


def test_a_replay_without_a_change_is_the_run(recorded: Any, tmp_path: Path) -> None:
    """So that the test above is about what it changes."""
    grid, overrides, folder = recorded
    result = run_federation(
        Replayed(grid, -1, lambda content: None), compose([*overrides, f"out={tmp_path / 'out'}"])
    )
    before = load_checkpoint(folder / "out/checkpoints/round_001_checkpoint.pt")["model"]
    after = load_checkpoint(result.checkpoint)["model"]
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
