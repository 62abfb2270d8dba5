"""The server's secret, and what is drawn from it: the noise and the cohorts of differential
privacy.

Whoever could compute them could take the noise off again, so they come neither from the run's seed
nor from a generator whose state can be told from what it puts out. A secret of 32 bytes is drawn
from the operating system when a run begins; keyed BLAKE2b derives one key per purpose from it, and
AES-256 in counter mode makes each key into a stream. The secret lies in a file that only the
server's user can read, and is neither logged nor sent.
"""

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedhubert.errors import CheckpointError
from fedhubert.files import explaining_write_errors, open_here, sync_folder, temporary_path

FILE_NAME = "privacy.key"
_BYTES = 32


class Secret:
    """Bytes that must not be known. Its text form does not tell them."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def derive(self, *purpose: str | int | float) -> "Secret":
        """Return the secret of one purpose; without this one it cannot be told from random,
        whatever is known of others."""
        text = "/".join(map(repr, purpose)).encode()
        return Secret(hashlib.blake2b(text, key=self._key, digest_size=_BYTES).digest())

    def tag(self) -> str:
        """Return a name of this secret that does not tell it."""
        return self.derive("tag")._key.hex()[:16]

    def stream(self) -> "SecretStream":
        """Return the random stream of this secret, from its beginning."""
        return SecretStream(self._key)


class SecretStream:
    """Random numbers from a secret: the same secret gives the same ones."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return ``count`` numbers in (0, 1], multiples of 2**-53."""
        words = np.frombuffer(self._cipher.update(bytes(8 * count)), "<u8")
        return np.asarray(((words >> 11) + 1) * 2.0**-53, np.float64)

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """Return ``count`` numbers from the standard normal distribution (Box and Muller 1958); the
        farthest is 8.6.

        NumPy takes one thread for it, torch several that wait for each other.
        """
        half = -(-count // 2)
        radius, angle = np.sqrt(-2.0 * np.log(self.uniform(half))), 2.0 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def create_secret(folder: Path) -> Secret:
    """Draw a secret and write it to ``folder``; raises :class:`CheckpointError` when it cannot be
    written."""
    path, key = folder / FILE_NAME, secrets.token_bytes(_BYTES)
    with explaining_write_errors(folder, setting="checkpoint_dir"):
        temporary = temporary_path(path)
        with open_here(temporary, "xb", private=True) as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(folder)
    return Secret(key)


def load_secret(folder: Path) -> Secret:
    """Read the secret of the run in ``folder``; raises :class:`CheckpointError` when it is missing
    or damaged."""
    path = folder / FILE_NAME
    try:
        key = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}, from which the run draws noise and cohorts, cannot be read ({error.strerror}): put it back, or go on with `fedhubert fork`",
            setting="privacy",
        ) from None
    if len(key) != _BYTES:
        raise CheckpointError(
            f"{path} is damaged: put it back, or go on with `fedhubert fork`", setting="privacy"
        )
    return Secret(key)


def forget_secret(folder: Path) -> None:
    """Remove the secret: a new run begins in ``folder``."""
    (folder / FILE_NAME).unlink(missing_ok=True)
