"""The global model as it travels to the nodes, and the fields that come with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.updates.codecs import decode, encode
from fedhubert.federation.wire.arrays import publish
from fedhubert.federation.wire.flower import Array, Message
from fedhubert.federation.wire.messages.message import Arrays, NDArray
from fedhubert.federation.wire.messages.rounds import WithModel

InstructionT = TypeVar("InstructionT", bound=WithModel)


@dataclass(frozen=True)
class Broadcast:
    """A model for many nodes.

    Attributes:
        federation: Whom it is for.
        targets_key: Names the labels that it is trained on.
        values: The model as the broadcast codec writes it [P].
        published: The same, ready to be sent: in a simulation a reference.
        reference: The model as the nodes read it [P].
    """

    federation: Federation
    targets_key: str
    values: NDArray
    published: Array
    reference: torch.Tensor

    @classmethod
    def of(cls, federation: Federation, targets_key: str, model: torch.Tensor) -> "Broadcast":
        """Encode ``model`` [P]."""
        codec, shapes = federation.config.federated.broadcast_codec, federation.layout.shapes
        arrays = encode(codec, model, shapes)
        return cls(
            federation,
            targets_key,
            arrays["update"],
            publish(arrays["update"]),
            decode(codec, arrays, shapes),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of one copy."""
        return self.reference.numel() * np.dtype(self.values.dtype).itemsize

    def message(
        self,
        node: int,
        kind: type[InstructionT],
        partitions: Sequence[int],
        number: int,
        positions: Mapping[int, int],
        arrays: Arrays | None = None,
        **more: object,
    ) -> Message:
        """Return a message of round ``number`` that brings the model with an instruction of
        ``kind``; ``arrays`` go beside it, ``more``: its fields beside those of all."""
        federated = self.federation.config.federated
        fields = {
            "partitions": tuple(partitions),
            "round": number,
            "positions": {partition: positions.get(partition, 0) for partition in partitions},
            "layout": self.federation.layout.fingerprint,
            "targets": self.targets_key,
            "broadcast_codec": federated.broadcast_codec,
            "budget_s": federated.round_timeout_s,
            "arrays": {"model": self.values, **(arrays or {})},
        }
        instruction = kind.model_validate({**fields, **more})
        timeout_s = federated.round_timeout_s
        return self.federation.message(
            node,
            instruction,
            group=str(number),
            timeout_s=timeout_s,
            published={"model": self.published},
        )
