"""Every random choice of a run comes from here: a seed derived from the run's seed, a purpose and
integers such as round or partition.

Two purposes never share a stream, and a stream can be opened at any point (resume, another worker,
another order) without replaying what came before it.
"""

import hashlib

import numpy as np


def derive_seed(run_seed: int, purpose: str, *key: int) -> int:
    """Return a seed in [0, 2**63) that depends on all arguments and on nothing else (stable across
    processes and versions)."""
    text = "/".join(["fedhubert", str(run_seed), purpose, *map(str, key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(run_seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a NumPy generator seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(run_seed, purpose, *key))
