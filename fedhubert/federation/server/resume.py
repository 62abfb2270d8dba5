"""What a resumed run must have in common with the run that wrote the checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from fedhubert.config import Config
from fedhubert.config.catalog import rules_for
from fedhubert.errors import CheckpointError


def check_same_run(saved: Mapping[str, object], config: Config, folder: Path) -> None:
    """Raise :class:`CheckpointError` naming every setting that differs from the checkpoint's."""
    changed = changes(saved, config.model_dump(mode="json"))
    if changed:
        raise CheckpointError(
            f"the run in {folder} was started with other values of {', '.join(changed)}; resume "
            "with the same, choose another out=..., "
            "or go on from it under the new ones with `fedhubert fork`",
            setting="resume",
        )


def changes(saved: Mapping[str, object], now: Mapping[str, object]) -> dict[str, list[object]]:
    """Return dotted key -> [saved value, value now] of every setting that matters and differs."""
    return {name: pair for name, *pair in _differences("", now, saved)}


def _differences(name: str, now: object, saved: object) -> Iterator[tuple[str, object, object]]:
    if rules_for(name).get("resume") == "free":
        return
    if isinstance(now, Mapping) and isinstance(saved, Mapping):
        for key in sorted(now.keys() | saved.keys()):
            yield from _differences(f"{name}.{key}".lstrip("."), now.get(key), saved.get(key))
    elif now != saved:
        yield name, saved, now
