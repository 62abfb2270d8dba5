"""``sitecustomize`` of a registered site that means harm to others: it instructs another site in the server's name, and answers in a third's.

Flower's fleet API lets it push what it likes: the source of a message is not held against the node that sends it.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DONE = "instructed another site"


def instruct(supernode: ModuleType) -> None:
    """Have the SuperNode push, beside its first reply to a round, an instruction to the node that the environment names."""
    honest, told = supernode._push_messages, []

    def push(state: Any, object_store: Any, send: Any, push_object: Any) -> None:
        def send_more(message: Any, tree: Any, seconds: float) -> Any:
            if message.metadata.message_type == "train.round" and not told:
                told.append(True)
                forge(message.metadata.run_id, send, push_object)
            return send(message, tree, seconds)

        honest(state, object_store, send_more, push_object)

    supernode._push_messages = push


def forge(run_id: int, send: Any, push_object: Any) -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

    from fedhubert.compose import compose
    from fedhubert.federation.strategies.strategy import client_job
    from fedhubert.federation.wire import protocol
    from fedhubert.federation.wire.messages.nodes import Describe
    from tests.deployment.conftest import SMALL
    from tests.flower import identify

    identify()
    job = client_job(compose(SMALL)).model_dump_json()
    message = protocol.request(
        int(os.environ["FEDHUBERT_TEST_VICTIM"]),
        Describe(partitions=(1,)),
        job_json=job,
        run_key="forged",
        group="forged",
        ttl_s=600.0,
    )
    message.metadata.__dict__.update(_run_id=run_id, _src_node_id=1, _src_task_id=None)
    message.metadata.__dict__["_message_id"] = message.object_id
    wanted, session = send(message, get_object_tree(message), 0.0)
    for number, item in get_all_nested_objects(message).items():
        if number in wanted:
            push_object(run_id, session, number, item.deflate())
    print(DONE, flush=True)


def answer_for_site_0(identity: ModuleType) -> None:
    """Sign replies to rounds as site 0, by the only key that this site has."""
    from dataclasses import replace

    honest = identity.SignedReplies.__call__

    def seal(self: Any, message: Any, reply: Any) -> Any:
        lies = message.metadata.message_type == "train.round"
        return honest(replace(self, number=0) if lies else self, message, reply)

    identity.SignedReplies.__call__ = seal


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "flwr.supernode.start_client_internal": instruct,
    "fedhubert.federation.site.identity": answer_for_site_0,
}


class Finder(importlib.abc.MetaPathFinder):
    """Patches modules when they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        patch = PATCHES.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            patch(module)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
