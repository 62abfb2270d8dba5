"""What a checkpoint file holds: tensors and plain Python values, so that reading one runs no
code."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from fedhubert.errors import CheckpointError
from fedhubert.files import HashingFile
from fedhubert.formats.mistaken import mistaken_for_weights

FORMAT_VERSION = 1
MOST_VALUES, MOST_DEPTH = 2**22, 64
"""More than any checkpoint of ours holds: forty values a round of a hundred thousand rounds."""
_END = object()
_FIELDS: dict[str, type] = {
    "format_version": int,
    "round": int,
    "federated_metrics": dict,
    "config": dict,
    "model": dict,
}


def plain(value: Any, name: str, *, tensors: bool = False) -> Any:
    """Return ``value`` as dicts, lists and plain Python values (NumPy scalars become Python's),
    with CPU tensors if ``tensors``.

    Raises:
        TypeError: for anything else, by its dotted name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {
            plain(key, f"{name} key {key!r}"): plain(item, f"{name}.{key}", tensors=tensors)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            plain(item, f"{name}[{index}]", tensors=tensors) for index, item in enumerate(value)
        ]
    if tensors and isinstance(value, Tensor):
        return _compact(value.detach().cpu())
    raise TypeError(
        f"{name} is a {type(value).__name__}; checkpoints take plain "
        f"values{' and tensors' if tensors else ''}"
    )


def float32(tensor: Tensor) -> Tensor:
    """Return ``tensor`` on the CPU, in float32 if it is of a floating-point type."""
    return _compact(
        tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    )


def saving(values: Any) -> Callable[[HashingFile], None]:
    """Return what writes ``values`` to an open file. Equal values give equal bytes."""
    return lambda file: torch.save(values, cast(BinaryIO, file))


def inflates(path: Path) -> bool:
    """Whether a file would grow when it is read: ``torch.save`` compresses nothing, and stores
    nothing twice."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception:  # torch's older format; or damaged, which loading it says better
        return False
    compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    return compressed or sum(record.file_size for record in records) > path.stat().st_size


def check_size(value: Any, most: int = MOST_VALUES) -> None:
    """Raise :class:`CheckpointError` for nested values that are more than ``most``, or too deep to
    walk; those held twice count twice.

    A file of a kilobyte can hold a list of the same list twice, of the same list twice, and so on:
    2**40 values to whoever walks it.
    """
    left, waiting = most, [iter((value,))]
    while waiting:
        item = next(waiting[-1], _END)
        if item is _END:
            waiting.pop()
            continue
        left -= 1
        if left < 0 or len(waiting) > MOST_DEPTH:
            raise CheckpointError(
                f"it holds more than {most} values, or values nested more than {MOST_DEPTH} deep"
            )
        if isinstance(item, Mapping):
            waiting.append(iter(item.values()))
        elif isinstance(item, list | tuple):
            waiting.append(iter(item))


def is_whole(tensor: Any) -> bool:
    """Whether ``tensor`` is one whose every entry is stored: an expanded or sparse one can be
    larger than all memory."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def load_plain(path: Path) -> Any:
    """Read what :func:`saving` wrote; raises :class:`CheckpointError` if that fails or if it holds
    other objects."""
    mistake = mistaken_for_weights(path)
    if mistake is not None:
        raise CheckpointError(f"{path} {mistake}")
    if inflates(path):
        raise CheckpointError(
            f"{path} is not loaded: it is compressed, which torch.save does not do, and could fill "
            "the memory"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        check_size(values)
        return values
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not loaded: {error}") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is not loaded: it is damaged, or holds objects other than tensors and plain "
            "values, and loading those can run code"
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """Return a line of torch's message that says what is wrong, and never its advice to load
    without ``weights_only``."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.partition("WeightsUnpickler error:")[2].strip() for line in lines]
    said = next(filter(None, told), "") or lines[0]
    return "torch cannot make sense of it" if "weights_only" in said else said


def validated(path: Path, values: Any) -> dict[str, Any]:
    """Return ``values`` if they are a round checkpoint of a version that this package knows; raises
    :class:`CheckpointError`."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a round checkpoint")
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(values.get(name), kind)]
    if wrong:
        raise CheckpointError(
            f"{path} is no round checkpoint ({', '.join(wrong)} missing or of another type): name "
            "a round_NNN_checkpoint.pt"
        )
    if values["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {values['format_version']} and this fedhubert reads up to "
            f"{FORMAT_VERSION}: "
            "use the version that wrote it"
        )
    if not values["model"] or not all(is_whole(tensor) for tensor in values["model"].values()):
        raise CheckpointError(f"{path}: `model` is not a state dict of tensors")
    return values


def _compact(tensor: Tensor) -> Tensor:
    """A view would be saved with all of the storage that it looks into."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.contiguous() if whole else tensor.clone(memory_format=torch.contiguous_format)
