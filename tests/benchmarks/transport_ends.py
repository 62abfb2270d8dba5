"""The two ends of :mod:`tests.benchmarks.transport`, in processes of their own, without what only tests need."""

import sys
import time
from pathlib import Path

import numpy as np

from fedhubert.federation.site.supernode import DistantNode, Node, OwnNode
from fedhubert.federation.wire.arrays import HeldArray, put_together_once
from fedhubert.federation.wire.flower import Array, ArrayRecord, Message, RecordDict
from fedhubert.federation.wire.flower.supernode import SuperNodeApi, Unreachable
from fedhubert.federation.wire.flower.waits import shorten_waits
from fedhubert.federation.wire.grid import StreamingGrid


def content_of(values: np.ndarray, way: str) -> RecordDict:  # type: ignore[type-arg]
    record = ArrayRecord()
    record["model"] = HeldArray(values) if way == "ours" else Array(values)
    return RecordDict({"arrays": record})


def play(grid: object, context: object) -> None:
    """Be the ServerApp: send a model to all, and read what comes back."""
    config = context.run_config  # type: ignore[attr-defined]
    way, streaming = config["way"], StreamingGrid(grid)  # type: ignore[arg-type]
    if way == "ours":
        shorten_waits("grid")
        put_together_once()
    while len(nodes := list(streaming.get_node_ids())) < config["sites"]:
        time.sleep(0.2)
    values = np.random.default_rng(0).standard_normal(config["numel"], dtype=np.float32)
    for number in range(config["rounds"]):
        values[0] = number
        content = content_of(values.copy(), way)
        messages = [Message(content, node, "train", group_id=str(number)) for node in nodes]
        for reply in streaming.send_and_receive(messages, timeout=600):
            came = reply.content.array_records["arrays"]["model"].numpy()
            assert np.array_equal(came, values)
        with open(config["out"], "a") as file:
            print('{"event": "round"}', file=file)


def serve(way: str, node: Node) -> None:
    """Be a site whose training takes no time: send back what comes."""
    if way == "ours":
        shorten_waits("site")
        put_together_once()
    while True:
        try:
            token = node.api.claim() if node.tend() else None
            if token is None:
                time.sleep(0.25)
                continue
            task = node.api.pull(token)
            values = task.message.content.array_records["arrays"]["model"].numpy()
            node.api.push(token, Message(content_of(values, way), reply_to=task.message), task)
            node.api.finish(token)
        except Unreachable:
            time.sleep(0.25)


def site(way: str, superlink: str, certs: str, number: str, port: str, secret: str) -> None:
    """Be a site's process. Flower's SuperNode is started by who starts this."""
    folder = Path(certs)
    key = folder / f"node-{number}.key"
    if way == "ours":
        log = folder / f"supernode-{number}.log"
        return serve(way, OwnNode(superlink, folder / "ca.crt", key, log, print))
    return serve(way, DistantNode(SuperNodeApi(f"127.0.0.1:{port}", secret.encode()), print))


if __name__ == "__main__":
    site(*sys.argv[1:])
