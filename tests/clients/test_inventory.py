"""What a site keeps: listed, bounded, removed, and never while a run holds it."""

import os
import time
from pathlib import Path

import pytest

from fedhubert.cli import main
from fedhubert.clients.inventory import items, remove, surplus
from fedhubert.files import exclusively


def keep(path: Path, num_bytes: int, days_ago: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    used = time.time() - days_ago * 86_400
    os.utime(path, (used, used))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    keep(tmp_path / "runs/old/partition_00000/round_00001.pt", 4000, 90)
    keep(tmp_path / "runs/old/partition_00001/round_00002.pt", 4000, 80)
    keep(tmp_path / "runs/new/partition_00000/round_00007.pt", 4000, 1)
    keep(tmp_path / "labels/labels-a.npy", 300, 70)
    keep(tmp_path / "labels/labels-a.json", 50, 70)
    keep(tmp_path / "labels/.labels-b.npy.7.tmp.npy", 900, 70)
    keep(tmp_path / "teachers/abc.safetensors", 1000, 60)
    keep(tmp_path / "teacher_outputs/aa/x.safetensors", 10, 50)
    keep(tmp_path / "teacher_outputs/bb/y.safetensors", 10, 5)
    keep(tmp_path / "site.log", 100, 400)
    return tmp_path


def test_things_that_belong_together_are_one_item_the_longest_unused_first(state: Path) -> None:
    assert [(item.kind, item.name, item.num_bytes) for item in items(state)] == [
        ("runs", "old", 8000),
        ("labels", "labels-a", 350),
        ("teachers", "abc", 1000),
        ("teacher_outputs", "all", 20),
        ("runs", "new", 4000),
    ]


def test_surplus_goes_from_the_longest_unused_on_and_leaves_what_is_in_use(state: Path) -> None:
    found = items(state)
    assert [item.name for item in surplus(found, 5020)] == ["old", "labels-a"]
    assert surplus(found, 10**6) == []
    with exclusively(state / "runs/old/partition_00001", setting="x"):
        assert [item.name for item in surplus(items(state), 12_100)] == ["labels-a", "abc"]
    remove(state, surplus(found, 5020))
    assert sorted(path.name for path in (state / "runs").iterdir()) == ["new"]
    assert (
        not list((state / "labels").glob("labels-a.*"))
        and (state / "labels/.labels-b.npy.7.tmp.npy").exists()
    )
    assert (state / "site.log").exists()


def test_the_command_lists_and_removes(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["state", str(state)]) == 0
    assert (
        "runs                      0.0 MB" in (listed := capsys.readouterr().out)
        and "0.000 GB in" in listed
    )
    assert main(["state", str(state), "--unused-days", "65", "--dry-run"]) == 0
    assert "would be removed: 2 of 5 items" in capsys.readouterr().out
    assert len(items(state)) == 5
    assert main(["state", str(state), "--run", "new", "--unused-days", "65"]) == 0
    assert "removed: 3 of 5 items" in capsys.readouterr().out
    assert [item.name for item in items(state)] == ["abc", "all"]
    assert main(["state", str(state), "--max-gb", "0"]) == 0
    assert items(state) == [] and (state / "site.log").exists()


def test_what_cannot_be_done_is_said(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["state", str(tmp_path / "elsewhere")]) == 1
    assert "is no state folder" in capsys.readouterr().err
    assert main(["state", str(state), "--run", "nothing"]) == 1
    assert "no run nothing here; there are: old, new" in capsys.readouterr().err
    assert main(["state", str(state), "--max-gb", "-1"]) == 1
    with exclusively(state / "runs/new/partition_00000", setting="x"):
        assert main(["state", str(state), "--run", "new"]) == 1
    assert "run new is being trained" in capsys.readouterr().err


def test_links_out_of_the_folder_are_left_alone(
    state: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "precious"
    outside.write_text("x")
    (state / "runs/linked").symlink_to(outside.parent)
    (state / "labels/link.npy").symlink_to(outside)
    assert main(["state", str(state), "--max-gb", "0"]) == 0
    assert outside.read_text() == "x"
