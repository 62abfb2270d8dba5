"""How long modules may be, and that what tests put in another's place is there."""

import ast
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PATCHES = {"setattr", "delattr", "patch", "object"}
"""Methods of ``monkeypatch`` and ``mock.patch`` that take a name, or an object and a name."""


@pytest.mark.parametrize(
    ("room", "most"), [("fedhubert", 325), ("server_app", 325), ("client_app", 325), ("tests", 350)]
)
def test_no_module_is_too_long_to_read_at_once(room: str, most: int) -> None:
    modules = (TESTS.parent / room).rglob("*.py")
    lines = {str(path): len(path.read_text().splitlines()) for path in modules}
    assert lines and not {path: count for path, count in lines.items() if count > most}


def of_ours(path: Path) -> Iterator[str]:
    """Yield the dotted names of the package whose values a module of tests changes."""
    tree = ast.parse(path.read_text())
    known = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def dotted(node: ast.expr) -> str:
        first, dot, rest = ast.unparse(node).partition(".")
        return f"{known.get(first, first)}{dot}{rest}"

    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Attribute() as target]):
                names.append(dotted(target))
            case ast.Call(func=ast.Attribute(attr=attr), args=[ast.Constant(value=str(name)), *_]):
                names += [name] if attr in PATCHES else []
            case ast.Call(
                func=ast.Attribute(attr=attr), args=[of, ast.Constant(value=str(name)), *_]
            ):
                names += [f"{dotted(of)}.{name}"] if attr in PATCHES else []
    yield from (name for name in names if name.startswith("fedhubert."))


def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_what_tests_put_in_anothers_place_is_there(tmp_path: Path) -> None:
    """A cache that is reset under a name that has moved is not reset, and no error says so."""
    moved = tmp_path / "moved.py"
    moved.write_text("from fedhubert.federation.site import incoming as site\nsite._gone = None\n")
    assert [is_there(name) for name in of_ours(moved)] == [False]
    wrong = {
        str(path): gone
        for path in TESTS.rglob("*.py")
        if (gone := [name for name in of_ours(path) if not is_there(name)])
    }
    assert not wrong
