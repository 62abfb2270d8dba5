"""Models of the HuggingFace hub: fetched by huggingface_hub where it is installed, explained where
a path was wanted."""

import re
import shlex
from pathlib import Path

from fedhubert.errors import CheckpointError

HUB = "hf:"
"""What the name of a model of the hub begins with, where a path could stand."""

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def fetched(name: str) -> Path:
    """Return the folder that a model of the hub lies in, fetched if it is not in the cache of
    huggingface_hub: settings and weights alone.

    Args:
        name: ``OWNER/MODEL``, or ``OWNER/MODEL@REVISION``.

    Raises:
        CheckpointError: no such name or model, no network, or huggingface_hub is not installed.
    """
    repository, _, revision = name.partition("@")
    if not _NAME.fullmatch(repository):
        raise CheckpointError(
            f"{HUB}{name} is no name of the hub: {HUB}OWNER/MODEL, for example "
            f"{HUB}facebook/hubert-base-ls960"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{HUB}{name} needs huggingface_hub: pip install 'fedhubert[hub]', or fetch it "
            "elsewhere "
            f"with {_command(repository)} and name the folder"
        ) from None
    try:
        for patterns in (["*.json", "*.safetensors"], ["*.json", "pytorch_model*.bin"]):
            folder = Path(
                snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
            )
            if any(folder.glob(patterns[1])):
                break
    except Exception as error:  # of huggingface_hub, of its HTTP library, of the system
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{HUB}{name} cannot be fetched ({type(error).__name__}: {said}): fetch it where there "
            "is a "
            f"network with {_command(repository)} and name the folder"
        ) from None
    return folder


def nothing_at(path: Path) -> str:
    """Return what to say where nothing is at ``path``, which may be the name of a model of the
    hub."""
    name = "/".join(path.parts[-2:])
    if path.parent.is_dir() or path.suffix in (".pt", ".pth", ".safetensors", ".bin"):
        return f"no file or folder {path}"
    if not _NAME.fullmatch(name):
        return f"no file or folder {path}"
    return (
        f"no file or folder {path}. If {name} is a model of the HuggingFace hub: {HUB}{name} (with "
        "huggingface_hub: pip install 'fedhubert[hub]'), "
        f"or fetch it with {_command(name)} and name the folder"
    )


def _command(name: str) -> str:
    folder = name.rpartition("/")[2]
    words = f"download {shlex.quote(name)} --local-dir {shlex.quote(folder)}"
    return f"`huggingface-cli {words}` (since huggingface_hub 1.0: `hf {words}`)"
