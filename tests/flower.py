"""Whatever tests touch of Flower beyond its public classes: where a Flower has moved it, this file is what changes.

Rarely used parts are imported where they are used, so that one that has moved fails its own tests alone.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


def identify() -> None:
    """Give this process the identity that Flower gives an app when it starts one; without it there are no messages."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def said_by(node: int, message: Message) -> Message:
    """Make ``message`` one that ``node`` has sent; returns it."""
    message.metadata.__dict__["_src_node_id"] = node
    return message


def crashed(message: Message, error: Exception) -> Message:
    """Return the reply that Flower makes when a ClientApp raises ``error``."""
    from flwr.common.constant import ErrorCode

    return Message(
        Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=str(error)), reply_to=message
    )


class HandMadeGrid(Grid):
    """A grid without the parts that no test needs."""

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


def node_info(node: int, public_key: bytes, activated: str = "") -> Any:
    """Return a node as the SuperLink would report it; ``activated``: when it came online."""
    from flwr.proto.node_pb2 import NodeInfo

    return NodeInfo(node_id=node, public_key=public_key, last_activated_at=activated)


def key_bytes(key: EllipticCurvePublicKey) -> bytes:
    """Return a node's public key as the SuperLink keeps it."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return public_key_to_bytes(key)


def would_register(public_key: Path, key: EllipticCurvePublicKey) -> bool:
    """Whether ``flwr supernode register`` takes the file ``public_key``, and Flower the curve of ``key``."""
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

    return bool(try_load_public_key(public_key)) and uses_nist_ec_curve(key)


def noise_std(noise_multiplier: float, clip_norm: float, clients: int) -> float:
    """Return the standard deviation of the noise that Flower's own server-side privacy adds to a mean."""
    from flwr.supercore.differential_privacy import compute_stdv

    return float(compute_stdv(noise_multiplier, clip_norm, clients))


def message_bytes(message: Message) -> bytes:
    """Return all of a message in one piece, arrays included."""
    from flwr.common.serde import message_to_proto

    return bytes(message_to_proto(message).SerializeToString())


def deflated(record: RecordDict) -> dict[str, bytes]:
    """Return what travels of a record: every object in it, by its id."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    return {name: item.deflate() for name, item in get_all_nested_objects(record).items()}


def inflated(object_id: str, objects: Mapping[str, bytes]) -> RecordDict:
    """Return the record that arrives."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    arrived = inflate_object_from_contents(object_id, dict(objects))
    assert isinstance(arrived, RecordDict)
    return arrived


def raw_array(
    content: bytes,
    dtype: str = "float32",
    shape: tuple[int, ...] = (),
    stype: str = "numpy.ndarray",
) -> Array:
    """Return an array whose description need not be true of its bytes."""
    return Array(dtype, shape, stype, content)


def pickled_array(value: object) -> Array:
    """Return an array of objects: who reads it with pickle runs what it says."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([value], dtype=object), allow_pickle=True)
    return raw_array(buffer.getvalue(), "object", (1,))


def record_of(**arrays: Array) -> ArrayRecord:
    """Return a record that keeps the arrays as they are: its constructor would make ordinary ones."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


class HandMadeSuperNode:
    """The API of a SuperNode with ``--isolation process`` on the loopback, over a state that has no SuperLink."""

    def __init__(self, secret: bytes) -> None:
        import threading
        import time

        import uvicorn
        from flwr.supercore.object_store import ObjectStoreFactory
        from flwr.supercore.run import Run
        from flwr.supernode.main import create_app
        from flwr.supernode.nodestate import NodeStateFactory

        identify()
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state, self.store = factory.state(), factory.objectstore_factory.store()
        self.state.set_node_id(TaskIdentity.node_id)
        self.run = Run.create_empty(TaskIdentity.run_id)
        settings = uvicorn.Config(
            create_app(factory, secret), host="127.0.0.1", port=0, log_level="warning"
        )
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.address = f"127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def hand_out(self, message: Message, code: bytes = b"", kind: str = "flwr-clientapp") -> None:
        """Have ``message`` wait for who takes it, with the code of its run."""
        from flwr.app import Context
        from flwr.app.message import remove_content_from_message
        from flwr.supercore.fab import Fab
        from flwr.supernode.start_client_internal import _insert_message

        run = self.run.run_id
        self.run.fab_hash = self.state.store_fab(Fab("", code, {}))
        self.state.store_run(self.run)
        self.state.set_run_series_context(
            self.run.series_id, Context(run, self.state.get_node_id(), {}, RecordDict(), {})
        )
        assert (
            self.state.create_task(task_type=kind, run_id=run, fab_hash=self.run.fab_hash)
            is not None
        )
        _insert_message(message, self.state, self.store)
        # the content travels apart
        self.state.msg_store[message.metadata.message_id].message = remove_content_from_message(
            message
        )

    def replies(self) -> list[Message]:
        """Return the replies that are there, whole."""
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        found = []
        for reply in self.state.get_messages_legacy(is_reply=True):
            name = reply.metadata.message_id
            contents = {
                tree.object_id: self.store.get(tree.object_id)
                for tree in iterate_object_tree(self.store.get_object_tree(name))
            }
            found.append(inflate_object_from_contents(name, contents))
        return found

    def unfinished(self) -> int:
        """Return how many tasks are not over."""
        return sum(task.status.status != "finished" for task in self.state.get_tasks())

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def secagg_mask(update: Any, seeds: list[bytes], threshold: int) -> Any:
    """What a client of Flower's SecAgg+ does with an update: quantise, add one mask per seed, share two secrets; by Flower's functions."""
    from flwr.common.secure_aggregation.crypto.shamir import create_shares
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
    )
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    masked = quantize([update], 8.0, 1 << 22)
    for seed in seeds:
        mask = pseudo_rand_gen(seed, 1 << 32, [update.shape])
        masked = parameters_addition(masked, mask)
    for secret in (bytes(32), bytes(64)):
        create_shares(secret, threshold, len(seeds))
    return parameters_mod(masked, 1 << 32)


def secagg_unmask(numel: int, seeds: list[bytes]) -> Any:
    """What its server does when nobody has dropped out: add the masked vectors, and take one mask per client off."""
    import numpy as np
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import dequantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    total = [np.zeros(numel, np.int64)]
    for _ in seeds:
        total = parameters_addition(total, [np.ones(numel, np.int64)])
    for seed in seeds:
        total = parameters_subtraction(total, pseudo_rand_gen(seed, 1 << 32, [(numel,)]))
    return dequantize(parameters_mod(total, 1 << 32), 8.0, 1 << 22)


def flowers_store(database: str) -> Any:
    """Return the object store that Flower's SuperLink has over a database."""
    from flwr.supercore.object_store import ObjectStoreFactory

    return ObjectStoreFactory(database).store()


def object_tree(record: RecordDict) -> Any:
    """Return which objects a record is made of, as it is said before they travel."""
    from flwr.supercore.inflatable.inflatable_object import get_object_tree

    return get_object_tree(record)


def pieces_of(array: Array, piece_bytes: int) -> list[tuple[str, bytes]]:
    """Return the ids and bytes of the pieces of an array, in pieces of that length where they are Flower's."""
    import flwr.app.message.array as module

    before = module.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    module.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE = piece_bytes
    try:
        return [(name, piece.deflate()) for name, piece in array.slice_array()]
    finally:
        module.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE = before


def kinds_that_arrive() -> dict[str, Any]:
    """Return Flower's table of the classes of what travels, by their names; it may be changed."""
    from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

    return inflatable_class_registry


def pulled_by() -> dict[Any, list[str]]:
    """Return the modules of Flower whose waits are shortened, and what is replaced in them."""
    import flwr.superlink.grid.http_grid as grid
    import flwr.supernode.runtime.run_clientapp as site
    import flwr.supernode.start_client_internal as supernode

    return {
        grid: ["pull_objects"],
        site: ["pull_and_inflate_object_from_tree"],
        supernode: ["pull_objects", "time"],
    }


def unavailable(name: str) -> Exception:
    """Return what Flower raises for an object that is known and not there yet."""
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

    return ObjectUnavailableError(name)


def parse_superlink(words: list[str]) -> None:
    """Read the flags of a SuperLink as its command does, which exits where one is wrong."""
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink

    _parse_args_run_superlink().parse_args(words)
