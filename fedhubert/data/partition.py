"""How one manifest becomes many clients' data, from the seed alone."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedhubert.config import PartitionConfig
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError
from fedhubert.seeding import generator

Rows = npt.NDArray[np.int64]

_MIN_UTTERANCES = 2  # one to train on, one to hold out
_MAX_DRAWS = 1000


def partition_rows(
    manifest: Manifest,
    config: PartitionConfig,
    num_clients: int,
    seed: int,
    rows: Rows | None = None,
) -> list[Rows]:
    """Return each client's rows (sorted).

    ``random`` deals utterances evenly (IID); ``speaker`` gives each speaker to one client,
    balancing audio; ``column`` gives each client one value of ``config.column``; ``dirichlet``
    spreads each value's utterances over clients by Dirichlet(alpha) (Hsu, Qi and Brown 2019).

    Raises:
        DataError: more clients than speakers, values that do not number the clients, or a client
            left with fewer than two utterances.
    """
    rows = (
        np.arange(len(manifest), dtype=np.int64)
        if rows is None
        else np.asarray(rows, dtype=np.int64)
    )
    if config.kind == "random":
        parts = [
            np.sort(part)
            for part in np.array_split(generator(seed, "partition").permutation(rows), num_clients)
        ]
    elif config.kind == "speaker":
        parts = _by_speaker(manifest, rows, num_clients, seed)
    elif config.kind == "column":
        parts = _by_column(manifest, str(config.column), rows, num_clients)
    else:
        parts = _dirichlet(manifest, config, rows, num_clients, seed)
    for client, part in enumerate(parts):
        if len(part) < _MIN_UTTERANCES:
            raise DataError(
                f"client {client} would get {len(part)} of {len(rows)} utterances (partition "
                f"{config.kind}); it needs {_MIN_UTTERANCES}: "
                "use fewer clients or another partition",
                setting="federated.num_clients",
            )
    return parts


def split_rows(
    rows: Rows,
    validation_fraction: float,
    seed: int,
    partition: int,
    files: Sequence[str] | None = None,
) -> tuple[Rows, Rows]:
    """Return (train, validation) of one client's rows, at least one utterance each; raises
    :class:`DataError` for fewer than two.

    Args:
        files: Which file each row is of (None: all differ). No file is in both splits, unless files
            are so long that this would hold out less than half or more than twice of what is
            wanted: then the last utterances of one are held out.
    """
    if len(rows) < _MIN_UTTERANCES:
        raise DataError(
            f"client {partition} has {len(rows)} utterances; it needs one to train on and one to "
            "hold out",
            setting="data.manifest",
        )
    held_out = min(max(1, round(validation_fraction * len(rows))), len(rows) - 1)
    rng = generator(seed, "split", partition)
    if files is not None and len(set(files)) < len(rows):
        return _split_files(rows, files, held_out, rng)
    shuffled = rng.permutation(rows)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


def _split_files(
    rows: Rows, files: Sequence[str], held_out: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Hold out whole files, in a random order, until ``held_out`` rows are: those that fit, or the
    smallest where none does."""
    _, inverse, sizes = np.unique(np.array(files), return_inverse=True, return_counts=True)
    chosen: list[int] = []
    left = held_out
    for number in rng.permutation(len(sizes)).tolist():
        if sizes[number] <= left and len(chosen) < len(sizes) - 1:
            chosen.append(number)
            left -= int(sizes[number])
    chosen = chosen or [int(np.argmin(sizes))]
    inside = np.isin(inverse, chosen)
    if len(sizes) == 1 or not held_out / 2 <= inside.sum() <= 2 * held_out:
        last = np.flatnonzero(inverse == int(np.argmax(sizes)))[-held_out:]
        inside = np.isin(np.arange(len(rows)), last)
    return rows[~inside], rows[inside]


def _group(values: Sequence[str], rows: Rows) -> dict[str, Rows]:
    """Return each value's rows, in their order; the values sorted."""
    numbers: dict[str, int] = {}
    of_all = np.fromiter(
        (numbers.setdefault(value, len(numbers)) for value in values), np.int64, len(values)
    )
    of_rows = of_all[rows]
    order = np.argsort(of_rows, kind="stable")
    edges = np.searchsorted(of_rows[order], np.arange(len(numbers) + 1))
    found = {name: rows[order[edges[at] : edges[at + 1]]] for name, at in sorted(numbers.items())}
    return {name: group for name, group in found.items() if len(group)}


def _by_speaker(manifest: Manifest, rows: Rows, num_clients: int, seed: int) -> list[Rows]:
    speakers = _group(manifest.speakers, rows)
    if num_clients > len(speakers):
        raise DataError(
            f"{num_clients} clients but {len(speakers)} speakers, each of one client: set "
            f"federated.num_clients={len(speakers)} or fewer",
            setting="federated.num_clients",
        )
    lengths = manifest.lengths()
    names = sorted(speakers)
    # Longest first balances best; the blur lets the seed decide the rest.
    blur = dict(
        zip(names, generator(seed, "partition").uniform(0.8, 1.25, len(names)), strict=True)
    )
    by_length = sorted(names, key=lambda name: -float(lengths[speakers[name]].sum()) * blur[name])
    parts: list[list[Rows]] = [[] for _ in range(num_clients)]
    totals = [0] * num_clients
    for name in by_length:
        client = totals.index(min(totals))
        parts[client].append(speakers[name])
        totals[client] += int(lengths[speakers[name]].sum())
    return [np.sort(np.concatenate(part)) for part in parts]


def _by_column(manifest: Manifest, column: str, rows: Rows, num_clients: int) -> list[Rows]:
    groups = _group(manifest.column(column), rows)
    if len(groups) != num_clients:
        raise DataError(
            f"column `{column}` has {len(groups)} values ({', '.join(list(groups)[:20])}), one per "
            f"client; federated.num_clients is {num_clients}",
            setting="federated.num_clients",
        )
    return list(groups.values())


def _dirichlet(
    manifest: Manifest, config: PartitionConfig, rows: Rows, num_clients: int, seed: int
) -> list[Rows]:
    groups = _group(manifest.column(str(config.column)), rows)
    rng = generator(seed, "partition")
    for _ in range(_MAX_DRAWS):
        parts: list[list[Rows]] = [[] for _ in range(num_clients)]
        for group in groups.values():
            shares = rng.dirichlet(np.full(num_clients, config.alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(group)).astype(np.int64)
            for part, piece in zip(parts, np.split(rng.permutation(group), cuts), strict=True):
                part.append(piece)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, joined)) >= _MIN_UTTERANCES:
            return joined
    raise DataError(
        f"no Dirichlet({config.alpha}) draw of {_MAX_DRAWS} gives each of {num_clients} clients "
        f"{_MIN_UTTERANCES} of the {len(rows)} utterances: "
        "raise data.partition.alpha or use fewer clients",
        setting="data.partition.alpha",
    )
