"""The file of figures: a line of JSON for each, on the disk as soon as it is known."""

import json
import os
import time
from pathlib import Path
from typing import Any

FIGURES = "figures.jsonl"
TAIL = 20
"""Lines that are kept of what failed."""


def append(folder: Path, **row: Any) -> None:
    """Append one line to the figures, on the disk when this returns: whatever ends the run later, it stays."""
    with (folder / FIGURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **row}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the lines written so far."""
    path = folder / FIGURES
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )
