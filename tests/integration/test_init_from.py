"""A run that starts from an imported encoder."""

import shutil
from pathlib import Path

import pytest
import torch

from fedhubert.formats.importing import encoder_sha256
from fedhubert.formats.round_file import find_checkpoint, load_checkpoint

from .conftest import Train


def test_a_run_starts_from_an_earlier_one_and_keeps_its_lineage(
    finished: Path, train: Train, tmp_path: Path
) -> None:
    source = tmp_path / "teacher.pt"
    shutil.copy(find_checkpoint(finished), source)
    out = tmp_path / "continued"
    overrides = (
        f"init_from={source}",
        "federated.num_rounds=1",
        "client.lr=1e-12",
        "client.weight_decay=0",
        "seed=5",
    )
    done = train(out, *overrides)
    assert done.returncode == 0, done.stderr
    before, after = load_checkpoint(source), load_checkpoint(find_checkpoint(out))
    assert (
        f"starting from {source} (fedhubert, encoder SHA-256 {encoder_sha256(before['model'])[:12]}): "
        in done.stderr
    )
    for name, tensor in before["model"].items():  # one round at a rate of nearly nothing
        assert torch.allclose(tensor, after["model"][name], atol=1e-7), name
    start, targets = after["federated_metrics"]["lineage"]
    assert start == {
        "init_from": {
            "format": "fedhubert",
            "encoder_sha256": encoder_sha256(before["model"]),
            "missed": [],
        }
    }
    assert targets.keys() == {"targets"}

    source.unlink()  # a resumed run goes on from its own checkpoint
    again = train(out, *overrides, "resume=auto")
    assert again.returncode == 0, again.stderr
    assert "all 1 rounds are done" in again.stderr


@pytest.mark.slow
def test_an_encoder_of_other_sizes_is_refused_before_anything_trains(
    finished: Path, train: Train, tmp_path: Path
) -> None:
    done = train(tmp_path / "out", f"init_from={finished}", "model.num_layers=2")
    assert done.returncode == 1
    assert "model.num_layers is 2 and the file has 1" in done.stderr.splitlines()[-1]
