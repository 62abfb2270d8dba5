"""A site's part in secure sums: who may ask for one, and what leaves of it.

Needs no torch, so that a sum is opened without it being loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhubert.clients.settings import NodeConfig, own_value, state_dir_of
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import RunKey, RunKeyFile, check_different, check_row
from fedhubert.federation.secure.ledger import SumLedger
from fedhubert.federation.secure.participant import Bytes, Participant
from fedhubert.federation.secure.roster import Roster
from fedhubert.federation.secure.terms import SumTerms, digest_of
from fedhubert.federation.site.unmasked import ROSTER, pinned_from
from fedhubert.federation.wire.arrays import sha256_of_ndarray
from fedhubert.federation.wire.messages.message import Instruction, NDArray
from fedhubert.federation.wire.messages.secure import Open, SecureTerms, Summing
from fedhubert.federation.wire.protocol import Request

OF_EACH = {"partitions", "positions", "steps", "site_rounds"}
"""Fields of a message that differ between nodes; of all the cohort they stand in its terms."""


@dataclass(frozen=True)
class SecureSite:
    """What a site goes by.

    Attributes:
        folder: In its state folder, for keys and ledgers.
        roster: What it has pinned; None in a simulation.
        signing: Its long-term key, where it has pinned a roster.
    """

    folder: Path
    roster: Roster | None
    signing: Ed25519PrivateKey | None

    @classmethod
    def of(cls, request: Request[Instruction], node_config: NodeConfig) -> SecureSite:
        """Return what the node of ``node_config`` goes by.

        Raises:
            ConfigError: its roster or its key cannot be used, or are not of each other.
            SecureError: ``secure_roster``: it has data of its own, and has pinned none.
        """
        pinned = pinned_from(node_config)
        # of a site with a roster never where the server says: a new folder would be a new ledger
        folder = state_dir_of(node_config, None if pinned else request.job) / "secure"
        if pinned is not None:
            return cls(folder, pinned.roster, pinned.key)
        if own_value(node_config, "data.manifest"):
            raise SecureError(
                "secure_roster",
                "this site has pinned no roster (fedhubert site --roster), and without one anybody "
                "could be the others of a sum",
                setting=ROSTER,
            )
        return cls(folder, None, None)

    @property
    def min_sites(self) -> int:
        return self.roster.min_sites if self.roster else 0

    @property
    def fingerprint(self) -> str:
        """The roster's; empty without one."""
        return self.roster.fingerprint if self.roster else ""

    def ledger(self, run: str, number: int) -> SumLedger:
        """Return what client ``number`` has masked and opened in ``run``."""
        folder = self.folder / f"partition_{number:05d}"
        return SumLedger(folder, run, remembers=self.roster is not None)

    def key_file(self, run: str, number: int) -> RunKeyFile:
        """Return where the run key of client ``number`` is."""
        return RunKeyFile(self.ledger(run, number).run_folder)

    def row(self, run: str, number: int) -> bytes:
        """Return the signed run key of client ``number``, made where there is none."""
        key = self.key_file(run, number).load_or_make(self.signing)
        return key.row(run, self.fingerprint, number)

    def key(self, terms: SumTerms, number: int) -> RunKey:
        """Return the run key of client ``number``; raises :class:`SecureError` (``secure_keys``)
        where it is not the one of ``terms``."""
        try:
            key = self.key_file(terms.run, number).load(self.signing)
        except FileNotFoundError:
            key = None
        if key is None or key.row(terms.run, self.fingerprint, number) != terms.key_of(number):
            raise SecureError(
                "secure_keys",
                f"the run key of client {number} is another one: it has been described before its "
                "state was lost",
                setting="client.state_dir",
            )
        return key

    def check(self, terms: SumTerms, *, alone: bool = False) -> None:
        """Rules 1 and 8: raise :class:`SecureError` for a sum that this site takes no part in;
        ``alone``: one that all answer and nobody opens."""
        terms.check()
        if terms.roster != self.fingerprint:
            raise SecureError(
                "secure_roster", "the run has another roster than this site", setting=ROSTER
            )
        if self.roster is not None:
            if not terms.is_complete:
                raise SecureError("secure_cohort", "not every two clients have a mask")
            if len(terms.cohort) < self.min_sites:
                raise SecureError(
                    "secure_cohort",
                    f"a cohort of {len(terms.cohort)}, and the roster asks for {self.min_sites}",
                    setting="federated.client_fraction",
                )
            if strangers := set(terms.cohort) - self.roster.sites.keys():
                raise SecureError(
                    "secure_cohort",
                    f"clients {sorted(strangers)} are not in the roster",
                    setting=ROSTER,
                )
            if alone and (missing := self.roster.sites.keys() - set(terms.cohort)):
                raise SecureError(
                    "secure_cohort",
                    f"{terms.kind} without sites {sorted(missing)}: k-means and label counts are "
                    "over the whole roster",
                    setting=ROSTER,
                )
        check_different(terms.keys)
        for number, row in zip(terms.cohort, terms.keys, strict=True):
            expected = self.roster.sites[number] if self.roster else None
            check_row(row, terms.run, self.fingerprint, number, expected)


def terms_of(request: Request[Summing], secure: SecureTerms) -> SumTerms:
    """Return the terms of the sum that ``request`` asks for, as this site was told them.

    Raises:
        SecureError: ``secure_keys`` where keys are missing; ``secure_positions`` where its own
            positions or steps are not those of the terms.
    """
    task = request.task
    rows = task.arrays.get("run_keys")
    if rows is None:
        raise SecureError("secure_keys", "no run keys", setting="secure.roster")
    for name in ("positions", "steps", "site_rounds"):
        own, all_of = getattr(task, name, None) or {}, getattr(secure, name) or {}
        if any(all_of.get(number) != value for number, value in own.items()):
            raise SecureError(
                "secure_positions", f"{name} that differ from the terms", setting=name
            )
    said = {
        "job": request.job_digest,
        "task": digest_of(task.model_dump_json(exclude=OF_EACH)),
        **{
            name: f"{array.dtype}{array.shape}{sha256_of_ndarray(array)}"
            for name, array in task.arrays.items()
            if name != "run_keys"
        },
    }
    return SumTerms(
        kind=task.KIND,
        run=request.run_key,
        roster=secure.roster,
        round=getattr(task, "round", 0),
        attempt=secure.attempt,
        cohort=secure.cohort,
        threshold=secure.threshold,
        neighbours=secure.neighbours,
        keys=tuple(row.tobytes() for row in rows),
        said=said,
    )


def run_key_rows(
    request: Request[Instruction], node_config: NodeConfig, numbers: Sequence[int]
) -> Mapping[str, NDArray]:
    """Return the signed run keys of partitions [N, 128], by the name of the array that has them;
    nothing where the run has no secure sums."""
    if request.job.secure == "none" or not numbers:
        return {}
    site = SecureSite.of(request, node_config)
    rows = b"".join(site.row(request.run_key, number) for number in numbers)
    return {"run_keys": np.frombuffer(rows, np.uint8).reshape(len(numbers), -1)}


def open_shares(request: Request[Open], node_config: NodeConfig, number: int) -> Bytes:
    """Return the shares [N, 33] that client ``number`` opens; raises :class:`SecureError`."""
    task, site = request.task, SecureSite.of(request, node_config)
    sealed = task.arrays.get(f"sealed_{number}")
    if sealed is None:
        raise SecureError("secure_share", f"no sealed shares for client {number}")
    ledger = site.ledger(request.run_key, number)
    terms = ledger.open(task.of, task.round, task.attempt, number, task.included, site.min_sites)
    participant = Participant(terms, number, site.key(terms, number))
    return participant.open(set(task.included), np.asarray(sealed, np.uint8))
