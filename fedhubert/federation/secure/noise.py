"""A client's share of the noise of ``privacy=distributed``, drawn from a secret of its site's own.

No server is believed: the site works out how much it adds by the terms of the sum that it takes
part in. A sum that honest sites open is of so many clients at least (``least``); those of them that
do not collude add Gaussian noise of standard deviation z C / sqrt(least - colluding) each, and
together z C or more, whatever the others do.

The noise derives from the secret, the sum's round and cohort, *and what it is added to*: an update
that is repeated after an interruption is the same release; another one gets independent noise.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedhubert.errors import ConfigError
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.streams import SECRET_BYTES, Secret
from fedhubert.federation.secure.terms import SumTerms
from fedhubert.files import exclusively, open_here, sync_folder

Normal = Callable[[int], npt.NDArray[np.float64]]
FILE_NAME = "noise.key"
LEAST_STEPS = 8.0
"""Noise of fewer steps of the grid would, once rounded, be another distribution than the one
accounted for."""


def share_of_noise(noise_multiplier: float, clip_norm: float, least: int, colluding: int) -> float:
    """Return the standard deviation of one client's noise in a sum of ``least`` or more, of whom
    ``colluding`` may add none.

    Raises:
        SecureError: ``secure_cohort``: all of them may.
    """
    if not 0 <= colluding < least:
        raise SecureError(
            "secure_cohort",
            f"{colluding} of {least} clients may collude, and nobody's noise would be left",
            setting="privacy.colluding",
        )
    return noise_multiplier * clip_norm / math.sqrt(least - colluding)


def check_covered(std: float, unit: float, weight: int) -> None:
    """Raise :class:`SecureError` (``secure_garbage``) where noise of standard deviation ``std``
    would not cover an update: one that weighs more than one clip norm, or is on a grid so coarse
    (``unit``) that rounding takes the noise away. A server chooses both."""
    if weight != 1:
        raise SecureError(
            "secure_garbage",
            f"an update of weight {weight}: noise is that of weight 1",
            setting="federated.weight_by",
        )
    if std < LEAST_STEPS * unit:
        raise SecureError(
            "secure_garbage",
            f"noise of standard deviation {std:.3g} on a grid of {unit:.3g}: {LEAST_STEPS:g} steps "
            "at least",
            setting="federated.update_codec",
        )


def noise_in(
    terms: SumTerms,
    number: int,
    values: npt.NDArray[np.int64],
    *,
    folder: Path,
    std: float,
) -> Normal:
    """Return what draws the noise that client ``number`` adds to its ``values`` [P] in a sum, in
    units of its standard deviation ``std``; ``folder`` has the site's secret."""
    digest = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=32).hexdigest()
    said = (terms.kind, terms.run, terms.round, number, repr(terms.cohort), digest, std)
    return site_secret(folder).derive("share", *said).stream().normal


def site_secret(folder: Path) -> Secret:
    """Return the secret that a site draws its noise from, made where there is none yet, in a file
    of mode 0600 in ``folder``.

    Raises:
        ConfigError: it is damaged, or cannot be written or read.
    """
    path = folder / FILE_NAME
    try:
        with exclusively(folder, setting="client.state_dir", private=True):
            try:
                with open_here(path, "rb") as file:
                    key = file.read(SECRET_BYTES + 1)
            except FileNotFoundError:
                key = secrets.token_bytes(SECRET_BYTES)
                with open_here(path, "xb", private=True) as file:
                    file.write(key)
                    file.flush()
                    os.fsync(file.fileno())
                sync_folder(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot read or write {path}, from which noise is drawn: {error.strerror}",
            setting="client.state_dir",
        ) from None
    if len(key) != SECRET_BYTES:
        raise ConfigError(
            f"{path} is damaged: put it back, or remove it (noise is then drawn anew)",
            setting="client.state_dir",
        )
    return Secret(key)
