"""Sites by `fedhubert site`: the same training as the simulation, whatever happens to a worker, and no code but the installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import NODES, Deployment, write_site
from .test_federation import assert_same_model, events

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def sites(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink with three sites by `fedhubert site`, which are online."""
    deployed = Deployment(tmp_path_factory.mktemp("sites"))
    try:
        for number in range(NODES):
            write_site(tone_folder, deployed.folder / f"site-{number}", [f"speaker{number}"])
        deployed.start_superlink()
        for number in range(NODES):
            deployed.register(number)
        deployed.node = {number: deployed.start_site(number) for number in range(NODES)}
        for site in deployed.node.values():
            site.wait_for("connected to 127.0.0.1")
            site.wait_for("ready: torch and the handlers are loaded")
        yield deployed
    finally:
        deployed.end()


def test_three_sites_give_the_bits_of_the_simulation(sites: Deployment, simulated: Path, tmp_path: Path) -> None:
    run = sites.run(tmp_path / "run")
    assert sites.finish(run) == "finished:completed", sites.logs()
    assert_same_model(simulated, tmp_path / "run")
    (final,) = [event for event in events(tmp_path / "run") if event["event"] == "final"]
    assert len(final["clients"]) == NODES and not final["failed"]
