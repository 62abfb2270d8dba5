"""A distillation in Flower's simulation engine: one teacher to a state folder, outputs that workers share; and the demo's student learns."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import HubertModel

from fedhubert.cli import main
from fedhubert.data.corpora import sample_folder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.student import HEADS
from tests.conftest import is_png

from .conftest import Train, events
from .test_simulation import assert_same_model

STUDENT = [
    "task=distill",
    "task.layers=[1]",
    "model.embed_dim=16",
    "model.ffn_dim=32",
    "client.local_steps=null",
    "client.local_epochs=2",
]


@pytest.mark.slow
def test_workers_and_the_cache_change_no_bit(finished: Path, train: Train, tmp_path: Path) -> None:
    teacher, state = f"task.teacher={finished}", f"client.state_dir={tmp_path / 'state'}"
    done = train(tmp_path / "student", *STUDENT, teacher, state)
    assert done.returncode == 0, done.stderr
    assert (
        "times smaller than its teacher's" in done.stderr
        and "teacher (0.1 MB) sent to 1 of 3 nodes" in done.stderr
    )
    assert "dist" in done.stdout and is_png(tmp_path / "student/curves.png")
    assert len(list((tmp_path / "state/teachers").iterdir())) == 1
    assert list((tmp_path / "state/teacher_outputs").glob("*/*.safetensors"))
    plain = train(
        tmp_path / "plain",
        *STUDENT,
        teacher,
        state,
        "task.teacher_cache=false",
        "simulation.num_workers=1",
        "simulation.num_supernodes=2",
    )
    assert plain.returncode == 0, plain.stderr
    assert "teacher (0.1 MB) sent to 0 of 2 nodes" in plain.stderr
    assert_same_model(tmp_path / "student", tmp_path / "plain")
    assert any(
        name.startswith(HEADS)
        for name in load_checkpoint(tmp_path / "student/checkpoints/round_003_checkpoint.pt")[
            "model"
        ]
    )
    assert (
        main(["export", "--checkpoint", str(tmp_path / "student"), "--out", str(tmp_path / "hf")])
        == 0
    )
    assert HubertModel.from_pretrained(tmp_path / "hf").config.hidden_size == 16
    again = train(tmp_path / "student", *STUDENT, teacher, state, "resume=auto")
    assert again.returncode == 0 and "all 3 rounds are done" in again.stderr, again.stderr
    other = train(
        tmp_path / "student", *STUDENT, f"task.teacher={tmp_path / 'plain'}", state, "resume=auto"
    )
    assert other.returncode == 1 and "task.teacher_sha256" in other.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_demos_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    """The distance to the teacher on held-out audio falls by a fifth and more."""
    if not (sample_folder() / "manifest.csv").is_file():
        pytest.skip("the sample speech is not here: `fedhubert prepare sample`")
    runs = (
        ["experiment=demo", f"out={tmp_path / 'teacher'}"],
        [
            "experiment=demo_distill",
            f"out={tmp_path / 'student'}",
            f"task.teacher={tmp_path / 'teacher'}",
        ],
    )
    for overrides in runs:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "fedhubert.cli", "train", *overrides],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        print(overrides[0], round(time.monotonic() - started), "s")
    held_out = [
        event["validation"] for event in events(tmp_path / "student") if event.get("validation")
    ]
    print(json.dumps(held_out))
    for name in ("cosine_distance", "relative_l2", "loss"):
        assert held_out[-1][name] <= 0.8 * held_out[0][name], name
