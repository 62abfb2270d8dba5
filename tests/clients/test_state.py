"""What a site keeps between rounds, and for how long."""

from pathlib import Path

import pytest
import torch

from fedhubert.clients.state import PartitionState, StateFolder, StateMissing
from fedhubert.errors import CheckpointError


def test_a_site_goes_back_to_the_version_that_the_server_names(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "partition")
    assert folder.load(0) == PartitionState()
    for number in (2, 5):
        folder.save(
            number, PartitionState({"state": {}, "round": number}, torch.full((3,), float(number)))
        )
    kept = folder.load(2)
    assert (
        kept.optimizer == {"state": {}, "round": 2}
        and kept.residual is not None
        and kept.residual.tolist() == [2.0] * 3
    )
    assert folder.load(5).optimizer == {"state": {}, "round": 5}


def test_what_is_missing_or_damaged_is_said_and_never_guessed(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with pytest.raises(StateMissing, match="round_00003.pt is not there") as error:
        folder.load(3)
    assert error.value.code == "state_missing"
    folder.save(3, PartitionState(residual=torch.ones(1000)))
    file = tmp_path / "round_00003.pt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(StateMissing, match="damaged"):
        folder.load(3)


@pytest.mark.parametrize(
    ("keep", "checkpoints", "left"),
    [
        ([7, 9], [0], [7, 9]),
        ([7, 9], [0, 4], [3, 7, 9]),  # a resume from round 4 goes on from what round 3 left
        ([7, 9], [3, 8], [3, 7, 9]),
        ([9], [6, 6], [6, 9]),
    ],
)
def test_kept_are_the_newest_two_and_what_checkpoints_need(
    tmp_path: Path, keep: list[int], checkpoints: list[int], left: list[int]
) -> None:
    folder = StateFolder(tmp_path)
    for number in (1, 3, 6, 7, 9):
        folder.save(number, PartitionState())
    folder.prune(keep, checkpoints)
    assert folder.versions() == left


def test_a_state_that_cannot_be_written_is_an_error_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot keep state"):
        StateFolder(tmp_path / "file" / "partition").save(1, PartitionState())
