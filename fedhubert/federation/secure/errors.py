"""Why a site, or the server, does not go on with a secure sum."""

from typing import Literal

from fedhubert.errors import FederationError

Code = Literal[
    "secure_required",
    "secure_roster",
    "secure_cohort",
    "secure_threshold",
    "secure_keys",
    "secure_replay",
    "secure_model",
    "secure_positions",
    "secure_opened",
    "secure_share",
    "secure_ledger",
    "secure_unreadable",
    "secure_garbage",
]
"""What is said of it: see the table of attacks in README.md here."""


class SecureError(FederationError):
    """A secure sum that is refused, or comes to nothing; ``code`` says why."""

    def __init__(self, code: Code, message: str, *, setting: str = "secure.protocol") -> None:
        super().__init__(message, setting=setting)
        self.code: str = code
