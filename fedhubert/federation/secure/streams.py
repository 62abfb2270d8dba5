"""Random numbers from bytes that must not be known: keyed BLAKE2b derives one key per purpose, and
AES-256 in counter mode makes each key into a stream."""

import hashlib

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SECRET_BYTES = 32


class Secret:
    """Bytes that must not be known. Its text form does not tell them."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def derive(self, *purpose: str | int | float) -> "Secret":
        """Return the secret of one purpose; without this one it cannot be told from random,
        whatever is known of others."""
        text = "/".join(map(repr, purpose)).encode()
        return Secret(hashlib.blake2b(text, key=self._key, digest_size=SECRET_BYTES).digest())

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
