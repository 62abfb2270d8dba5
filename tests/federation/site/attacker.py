"""A server that has the keys of all sites of a roster but one, and what it asks that one."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from fedhubert.federation.secure.keys import RunKey
from fedhubert.federation.secure.participant import Dealt, Participant, dealers_of
from fedhubert.federation.secure.roster import Roster, write_roster
from fedhubert.federation.secure.terms import SumTerms, least_threshold
from fedhubert.federation.site.answering import respond
from fedhubert.federation.site.secure import terms_of
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.messages import ANSWERS, MASKED
from fedhubert.federation.wire.messages.message import Answer, Instruction
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.federation.wire.messages.rounds import Train
from fedhubert.federation.wire.messages.secure import Masked, Open, SecureTerms
from fedhubert.federation.wire.messages.targets import Label
from fedhubert.objectives.spec import build_model
from fedhubert.targets.kmeans import centroids_hash
from fedhubert.training.parameters import ParameterLayout

from .server import CENTROIDS, JOB, Server, no_refusals

SITES = 5
SECURE = [
    *JOB,
    *("federated.num_clients=5", "secure=pairwise", "client.local_steps=1"),
    "client.validation_batches=1",
]
RUN = "run"


@dataclass
class Attacker(Server):
    """Has the keys of sites 1 to 4, and asks site 0."""

    signing: list[Ed25519PrivateKey] = field(default_factory=list)
    roster: Roster = field(
        default_factory=lambda: Roster("none", 3, {n: bytes([n] * 32) for n in range(3)})
    )

    def __post_init__(self) -> None:
        self.run_keys = [RunKey(X25519PrivateKey.generate(), key) for key in self.signing]
        job = self.job()
        model = build_model(job.model, job.task, job.seed)
        self.layout = ParameterLayout.of(model)
        self.vector = self.layout.to_vector(model)

    def message(self, instruction: Instruction, *overrides: str, run: str = RUN) -> Any:
        return protocol.request(
            1,
            instruction.model_copy(update={"partitions": (0,)}),
            job_json=self.job(*overrides).model_dump_json(),
            run_key=run,
            group="",
            ttl_s=60.0,
        )

    def say(
        self, instruction: Instruction, *overrides: str, run: str = RUN
    ) -> protocol.Reply[Answer]:
        secure = getattr(instruction, "secure", None) is not None
        kind = (MASKED if secure else ANSWERS)[type(instruction)]
        return reading.read_reply(
            respond(self.message(instruction, *overrides, run=run), self.node), kind
        )

    def code(self, instruction: Instruction, *overrides: str, run: str = RUN) -> str:
        """Return the code that an instruction is refused by; an empty string when it is not."""
        reply = self.say(instruction, *overrides, run=run)
        assert not reply.failures or reply.answer is None or not reply.metrics
        return reply.failures[0].code if reply.failures else ""

    def own_row(self, run: str = RUN) -> bytes:
        """The signed run key that site 0 shows."""
        described = self.say(Describe(), run=run).answer
        assert isinstance(described, Description)
        return described.arrays["run_keys"].tobytes()

    def rows(self, run: str = RUN) -> list[bytes]:
        fingerprint = self.roster.fingerprint
        others = [key.row(run, fingerprint, 1 + n) for n, key in enumerate(self.run_keys)]
        return [self.own_row(run), *others]

    def secured(
        self, instruction: Any, cohort: Iterable[int] = range(SITES), run: str = RUN, **changes: Any
    ) -> Any:
        """Return the instruction as one for a secure sum."""
        chosen = tuple(cohort)
        known = self.rows(run)
        rows = changes.pop("rows", [known[number % SITES] for number in chosen])
        positions = getattr(instruction, "positions", {})
        terms = {
            "attempt": 0,
            "cohort": chosen,
            "threshold": least_threshold(len(chosen)),
            "neighbours": len(chosen) - 1,
            "roster": self.roster.fingerprint,
            "positions": {number: positions.get(0, 0) for number in chosen} if positions else {},
            "scale": 2**20,
        } | changes
        keys = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
        return instruction.model_copy(
            update={
                "secure": SecureTerms(**terms),
                "arrays": {**instruction.arrays, "run_keys": keys},
            }
        )

    def train(
        self, number: int = 1, position: int = 0, vector: torch.Tensor | None = None
    ) -> Train:
        model = self.vector if vector is None else vector
        return Train(
            round=number,
            positions={0: position},
            partitions=(0,),
            layout=self.layout.fingerprint,
            targets=centroids_hash(CENTROIDS),
            budget_s=600.0,
            arrays={"model": model.numpy()},
        )

    def label(self) -> None:
        """Have the audio labelled, which training needs."""
        asked = Label(
            targets=centroids_hash(CENTROIDS), counted=False, arrays={"centroids": CENTROIDS}
        )
        assert self.code(asked) == ""

    def terms(self, instruction: Any) -> SumTerms:
        """What site 0 was told."""
        request = reading.read_request(self.message(instruction))
        assert isinstance(request.task, Train)
        assert request.task.secure is not None
        return terms_of(request, request.task.secure)

    def round(self, number: int = 1, **changes: Any) -> tuple[SumTerms, Masked]:
        """Have site 0 mask an update; return the terms and its part."""
        asked = self.secured(self.train(number, changes.pop("position", 0)), **changes)
        reply = self.say(asked)
        assert isinstance(reply.answer, Masked) and not reply.failures, reply.failures
        return self.terms(asked), reply.answer

    def dealt(self, terms: SumTerms, own: Masked) -> dict[int, Dealt]:
        """The others deal as clients do."""
        found = {0: Dealt(own.arrays["sealed_0"], own.arrays["commitments_0"])}  # type: ignore[arg-type]
        for number in terms.cohort[1:]:
            part = Participant(terms, number, self.run_keys[number - 1])
            found[number] = part.mask([np.zeros(1, np.int64)])
        return found

    def open(
        self, terms: SumTerms, dealt: dict[int, Dealt], over: Iterable[int], **changes: Any
    ) -> Open:
        chosen = tuple(over)
        rows = [
            dealt[dealer].sealed[terms.helpers(dealer).index(0)]
            for dealer in dealers_of(terms, 0, chosen)
        ]
        fields = {
            "of": terms.kind,
            "round": terms.round,
            "attempt": terms.attempt,
            "included": chosen,
        } | changes
        sealed = fields.pop("sealed", np.stack(rows))
        return Open(partitions=(0,), arrays={"sealed_0": sealed}, **fields)


@pytest.fixture()
def attacker(server: Server, tmp_path: Path) -> Attacker:
    signing = [Ed25519PrivateKey.generate() for _ in range(SITES)]
    roster = Roster(
        "clinics", 4, {n: key.public_key().public_bytes_raw() for n, key in enumerate(signing)}
    )
    write_roster(tmp_path / "roster.json", roster)
    key = tmp_path / "site-0.key"
    key.touch(mode=0o600)
    key.write_bytes(signing[0].private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    node = {
        **server.node,
        "num-partitions": SITES,
        "policy": no_refusals(tmp_path),
        "site-key": str(key),
        "roster": str(tmp_path / "roster.json"),
    }
    return Attacker(node, list(SECURE), signing=signing[1:], roster=roster)
