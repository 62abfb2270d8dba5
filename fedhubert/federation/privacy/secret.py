"""The server's secret, and what is drawn from it: the noise and the cohorts of differential
privacy.

Whoever could compute them could take the noise off again, so they come neither from the run's seed
nor from a generator whose state can be told from what it puts out. A secret of 32 bytes is drawn
from the operating system when a run begins; keyed BLAKE2b derives one key per purpose from it, and
AES-256 in counter mode makes each key into a stream. The secret lies in a file that only the
server's user can read, and is neither logged nor sent.
"""

import os
import secrets
from pathlib import Path

from fedhubert.errors import CheckpointError
from fedhubert.federation.secure.streams import SECRET_BYTES, Secret, SecretStream
from fedhubert.files import explaining_write_errors, open_here, sync_folder, temporary_path

__all__ = ["FILE_NAME", "Secret", "SecretStream", "create_secret", "forget_secret", "load_secret"]

FILE_NAME = "privacy.key"


def create_secret(folder: Path) -> Secret:
    """Draw a secret and write it to ``folder``; raises :class:`CheckpointError` when it cannot be
    written."""
    path, key = folder / FILE_NAME, secrets.token_bytes(SECRET_BYTES)
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
            f"{path}, from which the run draws noise and cohorts, cannot be read "
            f"({error.strerror}): put it back, or go on with `fedhubert fork`",
            setting="privacy",
        ) from None
    if len(key) != SECRET_BYTES:
        raise CheckpointError(
            f"{path} is damaged: put it back, or go on with `fedhubert fork`", setting="privacy"
        )
    return Secret(key)


def forget_secret(folder: Path) -> None:
    """Remove the secret: a new run begins in ``folder``."""
    (folder / FILE_NAME).unlink(missing_ok=True)
