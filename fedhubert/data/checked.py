"""What was heard so far, kept beside the manifest to be: a call that was cut off goes on from
there."""

import json
import threading
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TextIO

from fedhubert.data.checking import Heard, Settings


class Checked:
    """A file of JSON lines, one for each file that can be used.

    An entry counts while its file has the size and the time of change that it had, and files are
    listened to in the same way. What cannot be read is passed over.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        self._path, self._settings = self.path(out), repr(settings)
        self._known: dict[tuple[str, ...], Heard] = {}
        self._lock = threading.Lock()
        self._writer: TextIO | None = None
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        for line in lines:
            try:
                key, settings_then, entry = json.loads(line)
                if settings_then == self._settings:
                    entry["warnings"] = tuple(map(tuple, entry["warnings"]))
                    entry["cuts"] = tuple(entry["cuts"])
                    self._known[tuple(key)] = Heard(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    @staticmethod
    def path(out: Path) -> Path:
        return out.with_name(f".{out.stem}.checked.jsonl")

    @classmethod
    def done(cls, out: Path) -> None:
        """Forget it: the manifest is written."""
        cls.path(out).unlink(missing_ok=True)

    def __enter__(self) -> "Checked":
        self._writer = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def get(self, key: tuple[str, str, str], stamp: str) -> Heard | None:
        """Return what was heard of a file, if it is as it was."""
        return self._known.get((*key, stamp))

    def put(self, key: tuple[str, str, str], stamp: str, heard: Heard) -> None:
        """Note what was heard; from any thread."""
        line = json.dumps([[*key, stamp], self._settings, asdict(heard)])
        with self._lock:
            if self._writer is not None:
                self._writer.write(f"{line}\n")
                self._writer.flush()
