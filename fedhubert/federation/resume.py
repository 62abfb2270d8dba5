"""What a resumed run must have in common with the run that wrote the checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedhubert.config import Config
from fedhubert.errors import CheckpointError

_FREE = {"experiment", "out", "resume", "checkpoint_dir", "dry_run", "simulation", "checkpoint", "evaluation"}
"""Places, and the size of the host: they may differ, since they do not change what is learned."""


def check_same_run(saved: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Raise :class:`CheckpointError` naming every setting that differs from the checkpoint's."""
    now = config.model_dump(mode="json")
    changed = [name for key in sorted(now.keys() - _FREE) for name in _differences(key, now[key], saved.get(key))]
    if changed:
        raise CheckpointError(
            f"the run in {folder} was started with other values of {', '.join(changed)}; resume with the same, or choose another out=...",
            setting="resume",
        )


def _differences(name: str, now: Any, saved: Any) -> Iterator[str]:
    if isinstance(now, dict) and isinstance(saved, dict):
        for key in sorted(now.keys() | saved.keys()):
            yield from _differences(f"{name}.{key}", now.get(key), saved.get(key))
    elif now != saved:
        yield name
