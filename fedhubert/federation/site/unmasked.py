"""A site that has pinned a roster sends nothing unmasked: what would is refused before anything is
done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhubert.clients.settings import NodeConfig, number_of
from fedhubert.deployment.keys import read_signing_key
from fedhubert.errors import ConfigError
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.roster import Roster, read_roster
from fedhubert.federation.site.identity import SITE_KEY
from fedhubert.federation.wire.flower import Message
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.messages.nodes import (
    Describe,
    HasExtractor,
    HasTeacher,
    SendExtractor,
    SendTeacher,
)
from fedhubert.federation.wire.messages.secure import Close, Open, Summing
from fedhubert.federation.wire.messages.targets import Label
from fedhubert.federation.wire.protocol import Request

ROSTER = "roster"
"""Name in a node's configuration of the roster that it has pinned."""

NEEDS_NO_MASK: frozenset[type[Instruction]] = frozenset(
    {Describe, HasExtractor, SendExtractor, HasTeacher, SendTeacher, Open, Close}
)
"""What is answered with nothing that was learned from audio: who a site is and how much it has,
whether a model is here, and shares of masks. All else is a part of a secure sum, or refused: also
an instruction that is new."""


@dataclass(frozen=True)
class Pinned:
    """An admission of what sends nothing unmasked.

    Attributes:
        roster: That the site has compared.
        number: The site's.
        key: Its long-term key, whose public half is in the roster under the number.
    """

    roster: Roster
    number: int
    key: Ed25519PrivateKey

    def __call__(self, message: Message, request: Request[Instruction]) -> Request[Instruction]:
        """Return ``request``.

        A description is refused, too, in a run without secure aggregation: such a run ends at the
        start, by the key, and not when it has begun to train.

        Raises:
            SecureError: ``secure_required``: its answer would not be masked.
        """
        task, federation = request.task, self.roster.federation
        if request.job.secure == "none":
            raise SecureError(
                "secure_required",
                f"this site has pinned the roster of {federation}, and {task.KIND} is of a run "
                "with secure.protocol=none: "
                "it takes part in runs with secure=pairwise",
            )
        in_sum = isinstance(task, Summing) and (
            task.secure is not None or (isinstance(task, Label) and not task.counted)
        )
        if not in_sum and type(task) not in NEEDS_NO_MASK:
            raise SecureError(
                "secure_required",
                f"{task.KIND} in the clear: this site has pinned the roster of {federation}, and "
                "sends nothing unmasked",
            )
        return request


def pinned_from(node_config: NodeConfig) -> Pinned | None:
    """Return the admission of a node whose configuration names a ``roster``, None where it names
    none.

    Raises:
        ConfigError: the roster or the site's key cannot be used, or the site is not in the roster
            with it.
    """
    named = node_config.get(ROSTER)
    if named in (None, "", False):
        return None
    number, key = number_of(node_config), _key_of(node_config)
    roster = read_roster(Path(str(named)).expanduser().absolute(), setting=ROSTER)
    roster.check_member(number, key.public_key().public_bytes_raw(), setting=ROSTER)
    return Pinned(roster, number, key)


def _key_of(node_config: Mapping[str, object]) -> Ed25519PrivateKey:
    named = node_config.get(SITE_KEY)
    if not named:
        raise ConfigError(
            "a site with a roster needs its long-term key: put site-N.key into --keys (fedhubert "
            "certs --site N made it), "
            f"or name it as {SITE_KEY} in the node's configuration",
            setting=SITE_KEY,
        )
    return read_signing_key(Path(str(named)).expanduser().absolute(), setting=SITE_KEY)
