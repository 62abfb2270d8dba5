"""The rooms of the house, which way imports go between them, and what may import the heavy frameworks."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from fedhubert.config import FederatedConfig

PACKAGE = Path(__file__).parent.parent / "fedhubert"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = Path(__file__).parent
APPS = [PACKAGE.parent / app / "app.py" for app in ("server_app", "client_app")]
DOOR = PACKAGE / "federation/wire/flower"
OF_OUR_TESTS = (
    Path(__file__).parent / "flower.py",
    Path(__file__).parent / "deployment/hostile_peer.py",
)
"""What tests touch of Flower's insides; the second runs as another site's process, without the rest of the tests."""
PUBLIC_FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}
FLOORS = (
    {"errors", "seeding", "registry", "durations", "processes", "memory"},
    {"files", "config", "live"},
    {"compose", "models", "disk_cache"},
    {"data"},
    {"objectives", "formats"},
    {"runs", "deployment"},
    {"targets", "training", "reporting"},
    {"evaluation"},
    {"clients"},
    {"federation.wire"},
    {"federation.updates"},
    {"federation.secure"},
    {"federation.strategies"},
    {"federation.privacy"},
    {"federation.roster"},
    {"federation.rounds"},
    {"federation.phases"},
    {"federation.server", "federation.site"},
    {"federation.engine"},
    {"baselines", "planning"},
    {"commands"},
    {"cli"},
)
"""Rooms from the ground up: each imports what is below it, and nothing beside or above it."""

HIGHEST = {floor: number for number, floors in enumerate(FLOORS) for floor in floors}
SITE_SEES = {
    "federation.wire",
    "federation.updates",
    "federation.secure",
    "federation.strategies",
}
"""What of the federation a site's code may import: nothing of the server's."""


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    """Return the room of a dotted module of the package: its first name, or two of them in the federation."""
    names = module.split(".")[1:]
    return ".".join(names[:2] if names[0] == "federation" and len(names) > 1 else names[:1])


def rooms_used(path: Path) -> set[str]:
    used = {room_of(name) for name in imported(path) if name.startswith("fedhubert.")}
    return {room for room in used if room in HIGHEST}


def own_room(path: Path) -> str:
    return room_of(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    room = own_room(path)
    if room in ("__init__", "federation.__init__"):
        assert not rooms_used(path)
        return
    wrong = {other for other in rooms_used(path) - {room} if HIGHEST[other] >= HIGHEST[room]}
    assert not wrong, f"{path} imports {sorted(wrong)}, which is beside or above {room}"
    roots = {name.split(".")[0] for name in imported(path)}
    assert "hydra" not in roots or room == "compose"


def of_framework(path: Path, framework: str) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] == framework}


@pytest.mark.parametrize(
    "path", [*MODULES, *APPS], ids=lambda path: path.relative_to(PACKAGE.parent).as_posix()
)
def test_there_is_one_door_to_flower_and_ray(path: Path) -> None:
    """Flower's insides behind ``wire/flower/`` alone; its public classes in the engine and the apps, too; Ray where messages and workers are."""
    flower, room = of_framework(path, "flwr"), own_room(path) if path in MODULES else "apps"
    if path.parent != DOOR:
        private = {name for name in flower if ".".join(name.split(".")[:2]) not in PUBLIC_FLOWER}
        assert not private and (not flower or room in ("federation.engine", "apps"))
    assert not of_framework(path, "ray") or room in ("federation.engine", "federation.wire")


@pytest.mark.parametrize("path", sorted(DOOR.glob("*.py")), ids=lambda path: path.name)
def test_the_door_imports_flowers_insides_for_the_type_checker_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            node.body = [ast.Pass()]
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = PUBLIC_FLOWER | {"flwr.serverapp.strategy"}
    assert {name for name in names if name.startswith("flwr")} <= allowed


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix()
)
def test_tests_touch_flowers_insides_in_one_file(path: Path) -> None:
    private = {
        name
        for name in of_framework(path, "flwr")
        if ".".join(name.split(".")[:2]) not in PUBLIC_FLOWER
    }
    assert not private or path in OF_OUR_TESTS
    assert "metadata.__dict__" not in path.read_text() or path in (*OF_OUR_TESTS, Path(__file__))


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "federation/site").glob("*.py")), ids=lambda path: path.name
)
def test_the_site_imports_nothing_of_the_server(path: Path) -> None:
    federation = {room for room in rooms_used(path) if room.startswith("federation.")}
    assert federation <= SITE_SEES | {"federation.site"}


STRATEGIES = set(get_args(FederatedConfig.model_fields["strategy"].annotation))
TASK_TYPES = {"DistillConfig", "TaskConfig"}


def strategies_named(path: Path) -> set[str]:
    """Names of strategies in a module's code: as a word of their own, in an identifier or a string."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names & STRATEGIES


def types_asked_for(path: Path) -> set[str]:
    """Names of classes that a module asks for by ``isinstance``."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    asked = [
        call.args[1]
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "isinstance"
    ]
    return {name.id for kinds in asked for name in ast.walk(kinds) if isinstance(name, ast.Name)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_strategy_is_named_and_a_task_told_apart_in_its_own_file_only(path: Path) -> None:
    room = own_room(path)
    if room not in (
        "config",
        "federation.strategies",
        "federation.wire",
    ):  # the one door to Flower has Flower's names
        assert not strategies_named(path), (
            "ask the strategy: fedhubert.federation.strategies.strategy.strategy_of"
        )
    if room != "objectives":
        assert not types_asked_for(path) & TASK_TYPES, (
            "ask the objective: fedhubert.objectives.spec.spec_of"
        )


def test_help_needs_no_heavy_import() -> None:
    probe = """
import sys
import fedhubert.cli
try:
    fedhubert.cli.main(["--help"])
except SystemExit:
    pass
print("HEAVY", sorted({"torch", "flwr", "hydra", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "verbs" in done.stdout
    assert "HEAVY []" in done.stdout
