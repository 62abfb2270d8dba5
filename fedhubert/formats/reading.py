"""Reading other people's weight files without running anything that is in them."""

import json
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedhubert.errors import CheckpointError
from fedhubert.formats.content import MOST_DEPTH, inflates, is_whole

_HARMLESS = ("fairseq.data.dictionary.", "argparse.Namespace", "numpy.", "_codecs.encode")
"""Classes that fairseq's checkpoints hold beside the weights. Stand-ins take their places: the
classes themselves are never called."""

CONTAINERS = ("model", "model_weight", "state_dict", "model_state_dict")
"""Keys under which tools keep the weights."""

_MOST_VALUES = 2**20
"""Tensors, settings and symbols of a dictionary: several times what a fairseq checkpoint holds."""

_CONVERT = (
    "import sys, json, torch; c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "p = lambda o: dict(o) if hasattr(o, 'keys') else vars(o) if type(o).__name__ == 'Namespace' else list(o) if hasattr(o, '__iter__') else str(o); "
    f"torch.save({{k: v if k in {CONTAINERS} else json.loads(json.dumps(v, default=p)) for k, v in c.items() if k in "
    f"{(*CONTAINERS, 'cfg', 'args', 'model_cfg', 'task_cfg')}}}, sys.argv[2])"
)


class StandIn:
    """What an object of a class that is not loaded becomes: its state, and no behaviour."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __new__(cls, *args: Any) -> "StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def conversion_command(path: Path) -> str:
    """Return the command that turns a file with objects into one without; it runs the file's code,
    so only where the file is trusted."""
    return f'python -c "{_CONVERT}" {path} {path.with_suffix(".plain.pt")}'


def read_weights(path: Path) -> Any:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote, on the CPU.

    Objects of the classes that fairseq saves become :class:`StandIn`; argument namespaces become
    dicts.

    Raises:
        CheckpointError: no such file, damaged, or holding objects that only running code from the
            file could build.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    if inflates(path):
        raise CheckpointError(
            f"{path} is not loaded: it is compressed, which torch.save does not do, and could fill the memory"
        )
    unknown = _unknown_classes(path)
    refused = [name for name in unknown if not name.startswith(_HARMLESS)]
    if refused:
        raise _holds_objects(path, refused)
    try:
        with torch.serialization.safe_globals([(StandIn, name) for name in unknown]):
            return _plain(torch.load(path, map_location="cpu", weights_only=True), Counter())
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not loaded: {error}") from None
    except Exception as error:  # a damaged file can fail in any way
        objects = (
            re.search(r"(?i)global:? (?:GLOBAL )?([\w.]+)", str(error))
            if isinstance(error, pickle.UnpicklingError)
            else None
        )
        if objects is not None:
            raise _holds_objects(path, [objects.group(1)]) from None
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or no PyTorch file: {_first_line(error)}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises :class:`CheckpointError`."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def is_state(values: Any) -> bool:
    """Whether ``values`` is a state dict of tensors."""
    return (
        isinstance(values, Mapping)
        and bool(values)
        and all(is_whole(value) for value in values.values())
    )


def _unknown_classes(path: Path) -> list[str]:
    """Classes and functions that the file names and torch would not call; empty for a file of
    torch's old format, where loading meets them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:
        return []


def _plain(value: Any, seen: Counter[str], depth: int = 0) -> Any:
    """Return ``value`` with dicts for argument namespaces; what is held twice counts twice in
    ``seen``."""
    seen["values"] += 1
    if seen["values"] > _MOST_VALUES or depth > MOST_DEPTH:
        raise CheckpointError(
            f"it holds more than {_MOST_VALUES} values, or values nested more than {MOST_DEPTH} deep"
        )
    if isinstance(value, StandIn):
        state = getattr(value, "state", None)
        return _plain(state, seen, depth + 1) if isinstance(state, dict) else value
    if isinstance(value, dict):
        return {key: _plain(item, seen, depth + 1) for key, item in value.items()}
    return (
        [_plain(item, seen, depth + 1) for item in value]
        if isinstance(value, list | tuple)
        else value
    )


def _holds_objects(path: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} is not loaded: it holds objects ({', '.join(names[:5])}), and building them can run code from the file. If you trust it, convert it "
        f"where it was written, or in an environment of its own, and name the result: {conversion_command(path)}"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
