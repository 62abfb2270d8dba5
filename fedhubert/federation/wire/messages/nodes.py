"""What a node is asked of itself: who it is, which data it has, and which models it needs before
it can label and train."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from fedhubert.config import ModelConfig
from fedhubert.federation.wire.messages.message import (
    RUN_KEYS,
    Answer,
    Count,
    Instruction,
    Key,
    Slot,
    Stated,
    Table,
)

_TENSORS = {"*": Slot(("float32", "int64"), None)}


class Describe(Instruction):
    """Say who you are and how much audio the partitions have."""

    KIND = "query.describe"


class HasExtractor(Instruction):
    """Is a model that is not trained, named by its content, here and whole: one whose layer gives
    features, or the frozen part of the run's own (``model.trainable``)?"""

    KIND = "query.extractor"
    extractor: Key


class SendExtractor(Instruction):
    """Keep this model, for features or as the frozen part of the run's own."""

    KIND = "train.extractor"
    SLOTS, MAX_ARRAYS = _TENSORS, 4096
    extractor: Key
    model: ModelConfig


class HasTeacher(Instruction):
    """Is the teacher of the job's distillation here and whole?"""

    KIND = "query.teacher"
    teacher: Key


class SendTeacher(Instruction):
    """Keep this teacher."""

    KIND = "train.teacher"
    SLOTS, MAX_ARRAYS = _TENSORS, 4096
    teacher: Key
    model: ModelConfig


class Description(Answer):
    """Who a node is (number ``node`` of ``num_nodes``), and how much audio its partitions have;
    what all sites of a run must have in common. With ``secure``, ``run_keys`` [N, 128]: the signed
    run key of each partition."""

    SLOTS: ClassVar[Mapping[str, Slot]] = {"run_keys": RUN_KEYS}

    COLUMNS = frozenset(
        {
            *("train_utterances", "validation_utterances", "train_audio_s", "validation_audio_s"),
            *("batches_per_epoch", "data_fingerprint"),
        }
    )
    OPTIONAL = frozenset({"epoch_audio_s"})
    node: Count
    num_nodes: Annotated[int, Field(ge=1, lt=2**31)]
    hosts_all: Annotated[int, Field(ge=0, le=1)]
    layout: Key
    sample_rate_hz: Count
    label_rate_hz: Count
    num_clusters: Count
    centroids_hash: Stated = ""

    @model_validator(mode="after")
    def _check_number(self) -> Self:
        if self.node >= self.num_nodes:
            raise ValueError(f"node {self.node} of {self.num_nodes}")
        return self


class Has(Answer):
    """Whether the model that was named is here."""

    has: Annotated[int, Field(ge=0, le=1)]


ANSWERS: Table = {
    Describe: Description,
    HasExtractor: Has,
    SendExtractor: Has,
    HasTeacher: Has,
    SendTeacher: Has,
}
