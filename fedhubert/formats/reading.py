"""Reading other people's weight files without running anything that is in them."""

import json
import pickle
import pickletools
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedhubert.errors import CheckpointError, quoted
from fedhubert.formats.content import MOST_DEPTH, inflates, is_whole, reason_of
from fedhubert.formats.mistaken import mistaken_for_weights

_HARMLESS = ("fairseq.data.dictionary.", "argparse.Namespace", "numpy.", "_codecs.encode")
"""Classes that fairseq's checkpoints hold beside the weights. Stand-ins take their places: the
classes themselves are never called."""

CONTAINERS = ("model", "model_weight", "state_dict", "model_state_dict")
"""Keys under which tools keep the weights."""

_OLD_PICKLES = 4
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

_MOST_VALUES = 2**20
"""Tensors, settings and symbols of a dictionary: several times what a fairseq checkpoint holds."""

_CONVERT = (
    "import sys, json, torch; c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "p = lambda o: dict(o) if hasattr(o, 'keys') else vars(o) if type(o).__name__ == 'Namespace' "
    "else list(o) if hasattr(o, '__iter__') else str(o); "
    f"torch.save({{k: v if k in {CONTAINERS} else json.loads(json.dumps(v, default=p)) for k, v in "
    "c.items() if k in "
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
    plain = path.with_suffix(".plain.pt")
    return f'python -c "{_CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(plain))}'


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
    mistake = mistaken_for_weights(path)
    if mistake is not None:
        raise CheckpointError(f"{path} {mistake}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    if inflates(path):
        raise CheckpointError(
            f"{path} is not loaded: it is compressed, which torch.save does not do, and could fill "
            "the memory"
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
            f"{path} cannot be read, it is damaged or no PyTorch file: {reason_of(error)}"
        ) from None


def shards(index: Path) -> dict[str, Any]:
    """Read the files that an index of HuggingFace's names, in its folder, as one state dict.

    Raises:
        CheckpointError: no index, a file of another folder, one that is missing or damaged, or that
            lacks a tensor.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map: it does not say where which tensor is")
    names = sorted({str(name) for name in places.values()})
    elsewhere = [name for name in names if Path(name).name != name]
    if elsewhere:
        raise CheckpointError(f"{index} names {quoted(elsewhere[0])}, which is no file beside it")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{index} names {len(names)} files, and {', '.join(map(quoted, absent[:3]))} "
            f"{'is' if len(absent) == 1 else 'are'} not beside it: download the whole model again"
        )
    state: dict[str, Any] = {}
    for name in names:
        held = read_weights(index.parent / name)
        if not is_state(held):
            raise CheckpointError(f"{index.parent / name} holds no state dict of tensors")
        lacking = [
            tensor for tensor, place in places.items() if place == name and tensor not in held
        ]
        if lacking:
            raise CheckpointError(
                f"{index.parent / name} lacks {lacking[0]}, which {index.name} says is in it"
            )
        state |= held
    return state


def is_shard(path: Path) -> bool:
    """Whether a file is one of several that hold a model's weights together, by its name."""
    return _SHARD.search(path.name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises :class:`CheckpointError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        mistake = mistaken_for_weights(path) or ""
        if mistake.startswith(("is a", "is empty")):  # that it is text goes without saying
            raise CheckpointError(f"{path} {mistake}") from None
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
    """Classes and functions that the file names and torch would not call; of a file of torch's old
    format the harmless ones: loading meets the others."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:
        return [name for name in _named_in_old_format(path) if name.startswith(_HARMLESS)]


def _named_in_old_format(path: Path) -> list[str]:
    """Classes and functions that a file of torch before 1.6 names: it is four pickles (a number, a
    version, the machine, the content), then the tensors' bytes."""
    names: set[str] = set()
    try:
        with open(path, "rb") as file:
            for _ in range(_OLD_PICKLES):
                for operation, argument, _ in pickletools.genops(file):
                    if operation.name == "GLOBAL":
                        names.add(str(argument).replace(" ", "."))
    except Exception:  # no pickles, which loading says better
        return []
    return sorted(names)


def _plain(value: Any, seen: Counter[str], depth: int = 0) -> Any:
    """Return ``value`` with dicts for argument namespaces; what is held twice counts twice in
    ``seen``."""
    seen["values"] += 1
    if seen["values"] > _MOST_VALUES or depth > MOST_DEPTH:
        raise CheckpointError(
            f"it holds more than {_MOST_VALUES} values, or values nested more than {MOST_DEPTH} "
            "deep"
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
        f"{path} is not loaded: it holds objects ({', '.join(names[:5])}), and building them can "
        "run code from the file. If you trust it, convert it "
        "where it was written, or in an environment of its own, and name the result: "
        f"{conversion_command(path)}"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
