"""The same rounds as a Flower ``Strategy``, for those who drive them with Flower's own
``start()``."""

import logging
from collections.abc import Iterable

from fedhubert.errors import FederationError
from fedhubert.federation.rounds.loop import open_round
from fedhubert.federation.rounds.round import Round
from fedhubert.federation.rounds.shared import RoundResult, Rounds
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    Message,
    MetricRecord,
    Strategy,
)
from fedhubert.training.parameters import tensor_of

log = logging.getLogger("fedhubert")


class FederatedStrategy(Strategy):
    """Clients by partition id, streaming exact aggregation, one server-optimiser step.

    Give ``start()`` the federation's own grid (it hands replies over one at a time) and initial
    arrays with the model's vector [P] as ``model``.

    Args:
        rounds: What the rounds share.
        first_round: Our number of the round that ``start()`` calls 1.

    Attributes:
        results: The rounds finished so far.
    """

    def __init__(self, rounds: Rounds, *, first_round: int = 1) -> None:
        self.results: list[RoundResult] = []
        self._rounds, self._offset = rounds, first_round - 1
        self._open: Round | None = None

    def summary(self) -> None:
        federated = self._rounds.federation.config.federated
        log.debug(
            "strategy %s: %d of %d clients",
            federated.strategy,
            federated.clients_per_round,
            federated.num_clients,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose whom the round asks first and return a generator of one message per node that
        hosts some of them."""
        self._open = open_round(
            self._rounds, server_round + self._offset, tensor_of(arrays["model"].numpy())
        )
        return self._open.messages()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Finish the round; raises what :meth:`Round.finish` raises."""
        if self._open is None:
            raise FederationError("aggregate_train before configure_train")
        result = self._open.finish(replies)
        self.results.append(result)
        record = ArrayRecord()
        record["model"] = HeldArray(result.model.numpy())
        return record, MetricRecord({"clients": len(result.outcome.clients)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No message: clients score the incoming model in the next round's train message, which
        saves a round trip."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        return None
