"""The wire: every message that server and sites send each other, both ways. What is not in here
does not cross.

A server sends an :class:`Instruction`, a site answers it with the :class:`Answer` that belongs to
it, or with :class:`Failure` codes. Fields, columns and arrays are closed lists with types and
bounds: a message that holds anything else is refused. No audio, path, text, speaker or
per-utterance value has a place in them.

A module for each subject: :mod:`.message` has what all of them share, :mod:`.nodes` what a node is
and has, :mod:`.targets` k-means and labels, :mod:`.rounds` what comes with the global model,
:mod:`.characters` what transcripts are written in, :mod:`.secure` secure aggregation. Each says in
its ``ANSWERS`` what answers its instructions.

Shapes: P parameters, K clusters, D features wide, L labels, N partitions.
"""

from collections.abc import Mapping

from fedhubert.federation.wire.messages import characters, nodes, rounds, secure, targets
from fedhubert.federation.wire.messages.message import Instruction, Table

ANSWERS: Table = {
    **nodes.ANSWERS,
    **targets.ANSWERS,
    **characters.ANSWERS,
    **rounds.ANSWERS,
    **secure.ANSWERS,
}
"""The whole wire: each instruction with what answers it."""

MASKED: Table = {**targets.MASKED, **characters.MASKED, **rounds.MASKED}
"""What answers those that have secure terms."""

INSTRUCTIONS: Mapping[str, type[Instruction]] = {kind.KIND: kind for kind in ANSWERS}
