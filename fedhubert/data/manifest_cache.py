"""Large manifests in the form in which many processes share one copy: read once, kept beside a
site's labels under the digest of their content, and mapped into memory."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedhubert.data.cells import Cells
from fedhubert.data.manifest import Manifest
from fedhubert.data.parts import Parts
from fedhubert.disk_cache import DiskCache

LARGE_BYTES = 2**23
"""Smaller manifests are read in a moment."""
_MOST_BYTES = 2**33
_FORM = b"manifest 1"
_REQUIRED = ("path", "speaker")


def read_shared(path: Path, root: str | Path | None, state_dir: Path) -> Manifest:
    """Return the manifest at ``path``; a large CSV from ``state_dir``, where it is written the
    first time, so that all processes of a site have the same memory of it.

    Raises:
        DataError: as :meth:`Manifest.read`.
    """
    try:
        key = _digest(path) if path.stat().st_size >= LARGE_BYTES else ""
    except OSError:  # said by name when it is read
        key = ""
    if not key or path.suffix == ".tsv":  # whose first line names the root
        return Manifest.read(path, root)
    cache = DiskCache(state_dir / "manifests", _MOST_BYTES)
    start = Path(root).expanduser().absolute() if root else path.absolute().parent
    kept = _mapped(cache, key, start)
    if kept is not None:
        return kept
    manifest = Manifest.read(path, root)
    cache.put(key, _tensors(manifest))
    kept = _mapped(cache, key, start)
    return manifest if kept is None else kept  # where nothing can be kept


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(_FORM, digest_size=16))
    return digest.hexdigest()


def _tensors(manifest: Manifest) -> dict[str, Tensor]:
    columns = {"path": manifest.paths, "speaker": manifest.speakers, **manifest.columns}
    names = np.frombuffer(json.dumps(list(columns)).encode(), np.uint8)
    arrays = {
        "names": names,
        "num_samples": manifest.num_samples,
        "sample_rates_hz": manifest.sample_rates_hz,
    }
    for number, values in enumerate(columns.values()):
        cells = values if isinstance(values, Cells) else Cells.of(values)
        arrays[f"text_{number}"], arrays[f"offsets_{number}"] = cells.text, cells.offsets
    for field in fields(Parts):
        arrays[f"parts_{field.name}"] = getattr(manifest.parts, field.name)
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _mapped(cache: DiskCache, key: str, root: Path) -> Manifest | None:
    """Return what is kept under ``key``; None where that is nothing, or damaged."""
    kept = cache.get(key)
    if kept is None:
        return None
    arrays = {name: tensor.numpy() for name, tensor in kept.items()}
    try:
        names = json.loads(arrays["names"].tobytes())
        columns = {
            str(name): Cells(arrays[f"text_{number}"], arrays[f"offsets_{number}"])
            for number, name in enumerate(names)
        }
        parts = Parts(**{field.name: arrays[f"parts_{field.name}"] for field in fields(Parts)})
        samples, rates = arrays["num_samples"], arrays["sample_rates_hz"]
        path, speaker = (columns.pop(name) for name in _REQUIRED)
    except (KeyError, TypeError, ValueError):
        return None
    texts = [path, speaker, *columns.values()]
    each = [len(samples), len(rates), len(parts.starts), *map(len, texts)]
    if len(set(each)) > 1 or not all(cells.whole for cells in texts):
        return None
    return Manifest(root, path, speaker, samples, rates, dict(columns), parts)
