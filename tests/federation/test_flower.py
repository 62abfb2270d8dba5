"""The door to Flower: what is missing is said by name, and what can go on without it does."""

import logging
import subprocess
import sys
from collections.abc import Callable

import pytest

from fedhubert.federation.wire import flower
from fedhubert.federation.wire.flower import activations, is_simulated, mend_workers, public_keys
from fedhubert.federation.wire.flower.private import UnsupportedFlower, supported
from tests.flower import node_info

from .in_process import InProcessGrid

Move = Callable[[str], None]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Move:
    """Make a Flower whose module of a name is somewhere else."""
    return lambda module: monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]


class Keyed(InProcessGrid):
    def get_nodes(self) -> list[object]:
        return [node_info(node, b"key") for node in self.configs]


def test_a_real_server_goes_on_where_the_simulations_grid_has_moved(
    moved: Move, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_simulated(InProcessGrid([])) and not caplog.messages
    moved("flwr.superlink.grid")
    with caplog.at_level(logging.WARNING, "fedhubert"):
        assert not is_simulated(InProcessGrid([]))
    (said,) = caplog.messages
    assert (
        "has no flwr.superlink.grid.InMemoryGrid" in said
        and supported() in said
        and "real sites" in said
    )


def test_keys_that_are_not_said_stop_what_depends_on_them() -> None:
    assert public_keys(Keyed([{}, {}])) == {100: b"key", 101: b"key"}
    assert activations(Keyed([{}])) == {100: ""}
    grid = Keyed([{}])
    grid.get_nodes = lambda: [object()]  # type: ignore[method-assign]
    with pytest.raises(
        UnsupportedFlower,
        match=r"no NodeInfo.public_key, which federated.node_keys needs; fedhubert supports flwr",
    ):
        public_keys(grid)
    assert activations(grid) == {}


def test_a_simulation_goes_on_where_its_workers_cannot_be_mended(
    moved: Move, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "flwr.simulation.app", sys)
    moved("flwr.server.superlink.fleet.vce.backend.raybackend")
    mend_workers()
    assert (
        "raybackend.ClientAppActor" in caplog.text
        and "a worker that dies is not replaced" in caplog.text
    )


def test_a_site_that_simulates_nothing_imports_nothing_for_it() -> None:
    probe = "import sys; import client_app.app; print(sorted({'ray', 'flwr.simulation', 'flwr.superlink.grid'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_a_flower_without_the_public_classes_is_an_error_by_name() -> None:
    probe = f"import flwr.app; del flwr.app.Array; import {flower.__name__}"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert "UnsupportedFlower" in last and "'Array' from 'flwr.app'" in last and supported() in last
    assert supported().startswith("flwr") and ">=" in supported()
