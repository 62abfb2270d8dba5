"""The terms of a secure sum, as the server sets them."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedhubert.config.secure import least_threshold
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import check_different
from fedhubert.federation.secure.terms import SumTerms, neighbours_of
from fedhubert.federation.wire.messages.message import NDArray
from fedhubert.federation.wire.messages.secure import SecureTerms


def terms_for(
    federation: Federation, kind: str, number: int, attempt: int, cohort: Sequence[int]
) -> SumTerms:
    """Return the terms of a sum over ``cohort``; raises :class:`SecureError` where nobody should
    take part in it."""
    wanted, ordered = federation.config.secure, tuple(sorted(cohort))
    neighbours = neighbours_of(len(ordered), wanted.neighbours)
    roster = federation.roster
    terms = SumTerms(
        kind=kind,
        run=federation.run_key,
        roster=roster.fingerprint if roster else "",
        round=number,
        attempt=attempt,
        cohort=ordered,
        threshold=wanted.threshold or least_threshold(1 + neighbours),
        neighbours=neighbours,
        keys=tuple(federation.run_keys.get(partition, b"") for partition in ordered),
        said={},
    )
    terms.check()
    if roster and len(ordered) < roster.min_sites:
        raise SecureError(
            "secure_cohort",
            f"a cohort of {len(ordered)}, and the roster asks for {roster.min_sites}",
            setting="federated.client_fraction",
        )
    check_different(terms.keys)
    return terms


def wire_terms(
    terms: SumTerms,
    *,
    positions: Mapping[int, int] | None = None,
    steps: Mapping[int, int] | None = None,
    site_rounds: Mapping[int, int] | None = None,
    scale: int = 1,
    norm: float = 1.0,
) -> tuple[SecureTerms, dict[str, NDArray]]:
    """Return the terms, and the arrays that go with them, as messages carry them."""
    said = SecureTerms(
        attempt=terms.attempt,
        cohort=terms.cohort,
        threshold=terms.threshold,
        neighbours=terms.neighbours,
        roster=terms.roster,
        positions=dict(positions or {}),
        steps=None if steps is None else dict(steps),
        site_rounds=dict(site_rounds or {}),
        scale=scale,
        norm=norm,
    )
    rows = np.frombuffer(b"".join(terms.keys), np.uint8).reshape(len(terms.keys), -1)
    return said, {"run_keys": rows}
