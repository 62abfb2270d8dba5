"""``flower-superlink`` with arrays in transit in files instead of rows of its database.

Flower stores each piece of an array as a row of SQLite, which copies it into the log, from there
into the table, and from page to page when it is read or deleted. Here the row says that there is
such a piece, and the piece lies in a file: what is there, who refers to it and what a restart finds
is as it was.
"""

import functools
import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedhubert.errors import FedhubertError
from fedhubert.federation.wire.flower.private import UnsupportedFlower, private
from fedhubert.memory import keep_freed

log = logging.getLogger("fedhubert")

LEAST_BYTES = 2**14
"""What is shorter stays in its row: all but pieces of arrays."""
_IN_FILE = b"in a file"
"""In the place of what is in a file; no object of Flower's is without a zero byte."""

Factories = tuple[Any, Any]


def main(arguments: Sequence[str]) -> None:
    """Be a SuperLink until told to end; ``arguments`` as of ``flower-superlink``.

    Raises:
        UnsupportedFlower: there is none in this Flower.
        FedhubertError: no folder can be made beside the database.
    """
    command: Callable[[], None] = private("flwr.superlink.cli", "flower_superlink")
    keep_arrays_in_files()
    keep_freed()
    sys.argv = ["fedhubert superlink", *arguments]
    command()


def keep_arrays_in_files() -> None:
    """Have the SuperLink that this process is about to be keep arrays in files; where a Flower has
    moved what that takes, they stay in its database, with a warning."""
    try:
        factories = private("flwr.superlink.main", "get_objectstore_linkstate_factories")
        for name in ("SqlObjectStore", "get_object_id", "validate_object_content"):
            private(_STORE, name)
    except UnsupportedFlower as error:
        log.warning("%s: arrays in transit stay in the database", error)
        return
    sys.modules["flwr.superlink.main"].__dict__["get_objectstore_linkstate_factories"] = (
        functools.partial(_factories, factories)
    )


_STORE = "flwr.supercore.object_store.sql_object_store"


def _factories(original: Callable[..., Factories], database: str, *more: Any) -> Factories:
    """Return Flower's factories of its object store and its registry, the one with a store made."""
    objects, registry = original(database, *more)
    place = database.removeprefix("sqlite:///").strip()
    if place and not place.startswith(":") and "://" not in place:  # else it is no file
        objects.store_instance = file_store(database, Path(f"{place}.objects"))
    return objects, registry


def file_store(database: str, folder: Path) -> Any:
    """Return a Flower ``ObjectStore`` over ``database`` that keeps what is large in ``folder``.

    The kernel keeps such a file in memory for as long as there is room, and writes few of them
    before they are deleted. After a loss of power a file may be short: it is not what its name
    says, and refused by who pulls it.

    Raises:
        FedhubertError: the folder cannot be made.
    """
    get_object_id, validate = (
        private(_STORE, name) for name in ("get_object_id", "validate_object_content")
    )
    base = private(_STORE, "SqlObjectStore")

    class FileObjectStore(base):  # type: ignore[misc, valid-type]
        """Flower's own, but for the contents."""

        def put(self, object_id: str, object_content: bytes) -> None:
            if get_object_id(object_content) != object_id:
                raise ValueError(f"Object ID {object_id} does not match content hash")
            validate(object_content)
            if len(object_content) < LEAST_BYTES:
                super().put(object_id, object_content)
                return
            _write(folder / object_id, object_content)
            try:
                super().put(object_id, _IN_FILE)
            except Exception:
                if object_id not in self:
                    (folder / object_id).unlink(missing_ok=True)
                raise

        def get(self, object_id: str) -> bytes | None:
            content: bytes | None = super().get(object_id)
            if content != _IN_FILE:
                return content
            try:
                return (folder / object_id).read_bytes()
            except OSError:  # deleted a moment ago
                return None

        def delete(self, object_id: str) -> None:
            super().delete(object_id)
            if object_id not in self:
                (folder / object_id).unlink(missing_ok=True)

        def clear(self) -> None:
            super().clear()
            self.sweep()

        def sweep(self) -> None:
            """Delete files that no row speaks of."""
            for file in folder.iterdir():
                if file.name not in self:
                    file.unlink(missing_ok=True)

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FedhubertError(
            f"{folder}: {error.strerror}; arrays in transit lie beside the database",
            setting="--database",
        ) from None
    store = FileObjectStore(database, verify=False)  # it verifies what it is given
    store.initialize()
    store.sweep()
    return store


def _write(file: Path, content: bytes) -> None:
    """Have ``file`` appear whole, for this process's eyes only."""
    made = file.with_name(f".{uuid.uuid4().hex}")
    with open(made, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as written:
        written.write(content)
    made.replace(file)
