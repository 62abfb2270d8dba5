"""The SuperLink's object store: the same as Flower's own whatever happens, with what is large in files."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, RecordDict

from fedhubert.errors import FedhubertError
from fedhubert.federation.wire.flower import superlink
from fedhubert.federation.wire.flower.superlink import LEAST_BYTES, file_store
from tests.flower import deflated, flowers_store, object_tree, record_of

RUN = 7


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, which take Flower a second to make."""
    database = tmp_path_factory.mktemp("empty") / "superlink.db"
    flowers_store(str(database))
    return database


@pytest.fixture
def database(empty: Path, tmp_path: Path) -> str:
    return str(shutil.copy(empty, tmp_path))


@pytest.fixture
def message() -> RecordDict:
    values = np.random.default_rng(0).standard_normal(4 * LEAST_BYTES).astype(np.float32)
    return RecordDict({"arrays": record_of(large=Array(values), small=Array(values[:8]))})


def filled(store: Any, message: RecordDict) -> dict[str, bytes]:
    objects = deflated(message)
    assert set(store.preregister(RUN, object_tree(message))) == set(objects)
    for name, content in objects.items():
        assert store.get(name) == b""  # there, and not available yet
        store.put(name, content)
    return objects


def test_it_does_what_flowers_own_does(
    message: RecordDict, empty: Path, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    for store in (flowers_store(str(empty)), file_store(database, folder)):
        objects = filled(store, message)
        assert {name: store.get(name) for name in objects} == objects
        assert store.preregister(RUN + 1, object_tree(message)) == []  # there for another run
        store.delete_objects_in_run(RUN + 1)
        assert len(store) == 0 and not any(name in store for name in objects)
        filled(store, message)
        store.delete(message.object_id)
        assert len(store) == 0 and store.get(message.object_id) is None
        filled(store, message)
        store.clear()
        assert len(store) == 0
    assert not list(folder.iterdir())


def test_what_is_large_is_in_files_that_nobody_else_reads_and_what_is_small_is_not(
    message: RecordDict, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    objects = filled(file_store(database, folder), message)
    files = {file.name: file for file in folder.iterdir()}
    assert {name for name, content in objects.items() if len(content) >= LEAST_BYTES} == set(files)
    assert len(files) == 1
    assert all(file.stat().st_mode & 0o077 == 0 for file in [folder, *files.values()])
    in_database = b"".join(file.read_bytes() for file in tmp_path.glob("*.db*") if file.is_file())
    assert all(
        (content[-64:] in in_database) == (name not in files) for name, content in objects.items()
    )


def test_a_superlink_that_was_killed_finds_what_was_there_and_sweeps_the_rest(
    message: RecordDict, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    objects = filled(file_store(database, folder), message)
    (folder / ".half").write_bytes(b"half")
    (folder / ("0" * 64)).write_bytes(b"of a row that was not written")
    again = file_store(database, folder)
    assert {name: again.get(name) for name in objects} == objects
    assert {file.name for file in folder.iterdir()} == {
        name for name, content in objects.items() if len(content) >= LEAST_BYTES
    }


def test_what_is_not_what_its_name_says_is_not_stored(
    message: RecordDict, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    store = file_store(database, folder)
    store.preregister(RUN, object_tree(message))
    large = max(deflated(message).items(), key=lambda item: len(item[1]))[0]
    other = b"ArrayChunk  3\0abc" + bytes(LEAST_BYTES)
    with pytest.raises(ValueError, match="does not match"):
        store.put(large, other)
    name = hashlib.sha256(other).hexdigest()
    with pytest.raises(Exception, match="content length"):
        store.put(name, other)
    whole = b"ArrayChunk  %d\0" % LEAST_BYTES + bytes(LEAST_BYTES)
    with pytest.raises(Exception, match="not pre-registered"):
        store.put(hashlib.sha256(whole).hexdigest(), whole)
    assert store.get(large) == b"" and not list(folder.iterdir())


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedhubertError, match="arrays in transit lie beside the database"):
        file_store(str(tmp_path / "superlink.db"), tmp_path / "file" / "objects")


def test_a_database_in_memory_is_flowers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Objects:
        store_instance = None

    for database in (":flwr-in-memory:", ":memory:", "sqlite:///:memory:", ""):
        objects, registry = superlink._factories(lambda name: (Objects(), name), database)
        assert objects.store_instance is None and registry == database
    assert not list(tmp_path.iterdir())
    objects, _ = superlink._factories(lambda name: (Objects(), name), "superlink.db")
    assert objects.store_instance is not None and (tmp_path / "superlink.db.objects").is_dir()
