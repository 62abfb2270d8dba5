"""A round checkpoint as others read it: found in a folder, checked, and loaded without running
code."""

import logging
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.files import on_server, sha256_of
from fedhubert.formats.content import inflates, load_plain, validated
from fedhubert.formats.mistaken import mistaken_for_weights
from fedhubert.models.adapters import merged

log = logging.getLogger(__name__)

_ELSEWHERE = re.compile(
    r"""^checkpoint_dir: (?P<quote>['"]?)(?P<folder>.+(\n  .+)*)(?P=quote)$""", re.M
)
"""What says in a run's config.yaml where its checkpoints are; YAML folds long lines at spaces."""
_MOST_CONFIG = 2**20
_NAME = re.compile(r"round_(\d{3,})_checkpoint\.pt")


def round_path(folder: Path, round_number: int) -> Path:
    """Return where the checkpoint of a round is, or would be."""
    return folder / f"round_{round_number:03d}_checkpoint.pt"


def round_of(path: Path) -> int | None:
    """Return which round's checkpoint a file is, by its name; None for no round's."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else None


def rounds_in(folder: Path) -> list[int]:
    """Return the rounds of ``folder`` that have a checkpoint, intact or not, in order."""
    if not folder.is_dir():
        return []
    numbers = (round_of(path) for path in folder.iterdir())
    return sorted(number for number in numbers if number is not None)


def checkpoint_folders(path: Path) -> list[Path]:
    """Return where the checkpoints of a run may be, given its folder or theirs: also where its
    ``checkpoint_dir`` put them."""
    folders = [path, path / "checkpoints"]
    try:
        with open(path / "config.yaml", encoding="utf-8") as file:
            named = _ELSEWHERE.search(file.read(_MOST_CONFIG))
    except (OSError, ValueError):
        return folders
    folder = named["folder"].replace("\n  ", " ") if named else "null"
    return folders + ([on_server(folder)] if folder != "null" else [])


def resume_path(path: Path) -> Path:
    """Return where a round's checkpoint has what only resuming needs."""
    return path.with_name(path.name.replace("_checkpoint.pt", "_resume.pt"))


def digest_path(path: Path) -> Path:
    """Return where the digests of a round's files are."""
    return path.with_suffix(".sha256")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and check a round checkpoint; tensors land on the CPU.

    Returns:
        ``round``, ``federated_metrics``, ``config`` (plain values), ``model`` (``state_dict``,
        float32, adapters added to what they are of) and ``format_version``.

    Raises:
        CheckpointError: no such file, damaged, holding objects other than tensors and plain values,
            or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; name a round_NNN_checkpoint.pt")
    mistake = mistaken_for_weights(path)
    if mistake is not None:
        raise CheckpointError(f"{path} {mistake}")
    damage = damage_of(path, sidecar=False)
    if damage is not None:
        raise CheckpointError(
            f"{path} is damaged ({damage}); use the checkpoint of an earlier round"
        )
    content = validated(path, load_plain(path))
    return content | {"model": merged(content["model"], _alpha(content["config"]))}


def _alpha(config: Mapping[str, Any]) -> float:
    """Return ``model.adapter_alpha`` of a run's configuration, by default what it is there."""
    model = config.get("model")
    given = model.get("adapter_alpha") if isinstance(model, dict) else None
    if isinstance(given, int | float) and math.isfinite(given):
        return float(given)
    return float(ModelConfig.model_fields["adapter_alpha"].default)


def find_checkpoint(path: Path) -> Path:
    """Return ``path`` if it is a file, or the newest intact round of a checkpoint folder or of a
    run's folder; damaged ones are logged.

    Raises:
        CheckpointError: neither a file nor a folder with an intact round.
    """
    path = Path(path)
    if path.is_file():
        return path
    for folder in checkpoint_folders(path):
        for number in reversed(rounds_in(folder)):
            candidate = round_path(folder, number)
            damage = damage_of(candidate, sidecar=False)
            if damage is None:
                return candidate
            log.warning("%s is damaged (%s); trying the round before", candidate, damage)
    raise CheckpointError(
        f"{path} is neither a checkpoint file nor a folder with an intact round_NNN_checkpoint.pt",
        setting="checkpoint",
    )


def damage_of(path: Path, *, sidecar: bool) -> str | None:
    """Return what is wrong with a checkpoint (and its sidecar), or None.

    Files that were copied without their digests are checked by the CRCs inside them.
    """
    digests, resume = digest_path(path), resume_path(path)
    try:
        if path.suffix != ".pt" or not digests.is_file():
            return next(
                filter(
                    None,
                    map(_broken_record, [path, *([resume] if sidecar and resume.exists() else [])]),
                ),
                None,
            )
        expected = {
            name: digest
            for digest, _, name in (
                line.partition("  ") for line in digests.read_text().splitlines()
            )
        }
        if path.name not in expected:
            return f"{digests.name} does not list it"
        for name, digest in expected.items():
            file = path.with_name(name)
            if file != path and not sidecar:
                continue
            if not file.is_file():
                return f"{name} is missing"
            if sha256_of(file) != digest:
                return f"{name} is not what was written: its SHA-256 differs from {digests.name}"
        return None
    except (OSError, ValueError) as error:
        return f"it cannot be checked: {error}"


def _broken_record(path: Path) -> str | None:
    if inflates(path):
        return f"{path.name} is compressed"
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
        return None if record is None else f"the record {record} in {path.name} is corrupt"
    except Exception as error:  # a damaged archive can fail in any way
        return f"{path.name} is cut short, or no PyTorch file: {error}"
