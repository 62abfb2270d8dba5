"""The direction of imports, and what may import the heavy frameworks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fedhubert"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    "errors": 0,
    "seeding": 0,
    "config": 1,
    "compose": 2,
    "data": 2,
    "models": 2,
    "objectives": 3,
    "checkpoints": 3,
    "deployment": 3,
    "reporting": 3,
    "targets": 4,
    "training": 4,
    "evaluation": 4,
    "federation": 5,
    "baselines": 6,
    "planning": 6,
    "cli": 6,
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    used = {name.split(".")[1] for name in imported(path) if name.startswith("fedhubert.")}
    for other in used & LAYERS.keys():
        assert LAYERS[other] <= LAYERS[part] or (part, other) == ("federation", "cli"), f"{path} imports fedhubert.{other}"
    roots = {name.split(".")[0] for name in imported(path)}
    assert "hydra" not in roots or part == "compose"
    assert not roots & {"flwr", "ray"} or part == "federation"


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
