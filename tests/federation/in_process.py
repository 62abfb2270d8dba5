"""A grid whose nodes are this process: messages go through the ClientApp's own routing and handlers, only Flower's transport is left out."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedhubert.compose import compose
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.site.answering import register
from fedhubert.federation.site.policy import default_policy, explain
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.training.travelling import travelling_model
from tests.flower import HandMadeGrid, crashed, said_by


def open_policy(folder: Path) -> str:
    """Return the path of a policy that refuses nothing: what a site with tiny data for tests names, whose own default is strict."""
    file = folder / "open-policy.yaml"
    file.write_text(explain(default_policy(own_data=False)))
    return str(file)


class InProcessGrid(HandMadeGrid):
    """Nodes 100, 101, ... with the given node configurations; ``order`` of their ids decides whose reply comes first.

    Attributes:
        sent: Bytes of arrays by (node, message type).
        kinds: Messages by type.
        requests, answers: All messages and their replies so far.
    """

    def __init__(
        self, node_configs: list[dict[str, str | int]], order: Callable[[int], float] | None = None
    ) -> None:
        self.order = order
        self.due: dict[str, float] = {}
        self.configs = {100 + number: config for number, config in enumerate(node_configs)}
        self.app = ClientApp()
        register(self.app)
        self.requests: list[Message] = []
        self.answers: list[Message] = []
        self.replies: dict[str, Message] = {}
        self.sent: Counter[tuple[int, str]] = Counter()
        self.kinds: Counter[str] = Counter()

    def get_node_ids(self) -> Iterable[int]:
        return list(self.configs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            arrays = message.content.array_records.get("arrays", {})
            self.sent[node, kind] += sum(array.numpy().nbytes for array in arrays.values())
            self.kinds[kind] += 1
            self.requests.append(message)
            context = Context(1, node, dict(self.configs[node]), RecordDict(), {})
            try:
                reply = self.app(message, context)
            except Exception as error:  # as Flower's engine does
                reply = crashed(message, error)
            said_by(node, reply)
            ids.append(str(sum(self.kinds.values())))
            self.replies[ids[-1]] = reply
            self.answers.append(reply)
            self.due[ids[-1]] = self.order(node) if self.order else 0.0
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        first = min((self.due[number] for number in self.replies), default=0.0)
        return [
            self.replies.pop(number)
            for number in message_ids
            if number in self.replies and self.due[number] <= first
        ]


def federation(
    overrides: list[str], node_configs: list[dict[str, str | int]]
) -> tuple[Federation, InProcessGrid]:
    """Return a federation that is not yet connected, and the grid below it."""
    config, grid = compose(overrides), InProcessGrid(node_configs)
    _, layout = travelling_model(config.model, config.task, config.client, config.seed)
    return Federation(StreamingGrid(grid), config, "run", layout), grid
