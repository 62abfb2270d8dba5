"""Counts of the characters of transcripts, for a vocabulary."""

from collections.abc import Mapping
from typing import ClassVar

from fedhubert.federation.wire.messages.message import RUN_KEYS, Answer, Slot, Table
from fedhubert.federation.wire.messages.secure import MaskedCounts, Summing


class CountCharacters(Summing):
    """Count the characters of the transcripts that the job's ``task.text_column`` holds."""

    KIND = "query.characters"
    SLOTS: ClassVar[Mapping[str, Slot]] = {"run_keys": RUN_KEYS}


class CharacterCounts(Answer):
    """``counts`` [65536] by code point, over the partitions; those of too few are 0."""

    COLUMNS = frozenset({"characters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {"counts": Slot(("int64",), 1)}


ANSWERS: Table = {CountCharacters: CharacterCounts}
MASKED: Table = {CountCharacters: MaskedCounts}
