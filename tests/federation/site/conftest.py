"""A site with a manifest of its own, and a server that asks it."""

from pathlib import Path

import pytest

from fedhubert.clients import data
from fedhubert.federation.site import incoming

from .server import Server, write_site


@pytest.fixture(scope="session")
def site_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("audio"))


@pytest.fixture()
def server(site_manifest: Path, tmp_path: Path) -> Server:
    """A server before a site with the strict default policy, in a fresh process as far as it can tell."""
    data._cached_site.cache_clear()
    incoming._cached = None
    state = str(tmp_path / "state")
    return Server(
        {
            "partition-id": 0,
            "num-partitions": 3,
            "manifest": str(site_manifest),
            "state-dir": state,
            "device": "cpu",
        }
    )
