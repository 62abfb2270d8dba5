"""``metrics.jsonl``: one JSON object per event of a run, appended and flushed as it happens."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def append_event(path: Path, event: Event) -> None:
    """Append ``event`` as one line and force it to disk; a value that is not finite becomes
    null."""
    with path.open("a") as file:
        file.write(json.dumps(_plain(event)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a run; a last line cut short by a crash is skipped."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def keep_events(path: Path, wanted: Callable[[Event], bool]) -> None:
    """Drop the events that are not ``wanted``, so that a resumed run logs each once."""
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text(
        "".join(json.dumps(event) + "\n" for event in read_events(path) if wanted(event))
    )
    temporary.replace(path)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
