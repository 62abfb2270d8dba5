"""What secure sums cost beside plain ones: bytes, and seconds of the sites and of the server.

Bytes are those of the protocol; seconds are per parameter and mask, as measured on one thread
(``python -m tests.benchmarks.secure``).
"""

from fedhubert.federation.secure.figures import train_names
from fedhubert.federation.secure.keys import ROW_BYTES, SEAL_BYTES
from fedhubert.federation.secure.shares import COMMITMENT_BYTES, SHARE_BYTES
from fedhubert.federation.secure.terms import neighbours_of
from fedhubert.federation.updates.ring import RING_BITS
from fedhubert.objectives.spec import spec_of
from fedhubert.planning.inputs import Inputs

MASK_S = 1.25e-9
"""Of one mask over one parameter: 8 bytes of AES-256 and their addition."""
SHARE_S = 6e-6
"""To make, seal and commit to one share of one secret."""


def secrets_of(inputs: Inputs, cohort: int) -> int:
    """Return how many secrets a client of a cohort deals."""
    return 1 + neighbours_of(cohort, inputs.config.secure.neighbours)


def masked_bytes(inputs: Inputs, cohort: int, clients: int) -> int:
    """Return the bytes of a node's part of a sum, for so many clients of its own."""
    secrets = secrets_of(inputs, cohort)
    dealt = (
        secrets * (secrets * SHARE_BYTES + SEAL_BYTES) + secrets * (1 + secrets) * COMMITMENT_BYTES
    )
    tail = len(train_names(spec_of(inputs.config.task)))
    width = RING_BITS.get(inputs.config.federated.update_codec, 64) // 8
    return width * inputs.numel + 8 * tail + clients * dealt


def terms_bytes(cohort: int) -> int:
    """Return the bytes of the run keys that go with a round's message."""
    return ROW_BYTES * cohort


def opening_bytes(inputs: Inputs, cohort: int) -> tuple[int, int]:
    """Return the bytes down to a helper and up from it, where nobody drops out."""
    secrets = secrets_of(inputs, cohort)
    return secrets * (secrets * SHARE_BYTES + SEAL_BYTES), secrets * SHARE_BYTES


def masking_s(inputs: Inputs, cohort: int) -> float:
    """Return the seconds in which a client masks its update and deals its shares."""
    secrets = secrets_of(inputs, cohort)
    return secrets * MASK_S * inputs.numel + secrets**2 * SHARE_S


def opening_s(inputs: Inputs, cohort: int) -> float:
    """Return the seconds in which the server takes the masks off a sum, where nobody drops out."""
    return cohort * MASK_S * inputs.numel
