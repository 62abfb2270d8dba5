"""A grid whose nodes are this process: messages go through the ClientApp's own routing and handlers, only Flower's transport is left out."""

from collections import Counter
from collections.abc import Iterable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedhubert.compose import compose
from fedhubert.federation.client import register
from fedhubert.federation.grid import StreamingGrid
from fedhubert.federation.nodes import Federation
from fedhubert.models.hubert import build_hubert
from fedhubert.training.parameters import ParameterLayout


class InProcessGrid(Grid):
    """Nodes 100, 101, ... with the given node configurations.

    Attributes:
        sent: Bytes of arrays by (node, message type).
        kinds: Messages by type.
    """

    def __init__(self, node_configs: list[dict[str, str | int]]) -> None:
        self.configs = {100 + number: config for number, config in enumerate(node_configs)}
        self.app = ClientApp()
        register(self.app)
        self.replies: dict[str, Message] = {}
        self.sent: Counter[tuple[int, str]] = Counter()
        self.kinds: Counter[str] = Counter()

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> object:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.configs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            arrays = message.content.array_records.get("arrays", {})
            self.sent[node, kind] += sum(array.numpy().nbytes for array in arrays.values())
            self.kinds[kind] += 1
            context = Context(1, node, dict(self.configs[node]), RecordDict(), {})
            reply = self.app(message, context)
            reply.metadata.__dict__["_src_node_id"] = node
            ids.append(str(len(self.replies)))
            self.replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies[number] for number in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def federation(overrides: list[str], node_configs: list[dict[str, str | int]]) -> tuple[Federation, InProcessGrid]:
    """Return a federation that is not yet connected, and the grid below it."""
    config, grid = compose(overrides), InProcessGrid(node_configs)
    layout = ParameterLayout.of(build_hubert(config.model, config.seed)).fingerprint
    return Federation(StreamingGrid(grid), config, "run", layout=layout), grid
