"""The first hour, as README.md has it: its commands are run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedhubert.data.corpora import sample_folder
from tests.conftest import write_tones

from .pages import REPOSITORY, Page, Snippet

README = Page(REPOSITORY / "README.md")
SMALL = "federated.num_rounds=2 checkpoint.every=1 targets.num_clusters=8 targets.max_iterations=2 data.min_seconds=0.5"


def below(heading: str) -> list[Snippet]:
    """Return the snippets between this heading and the next."""
    first = README.lines.index(heading)
    last = next(
        number
        for number, line in enumerate(README.lines)
        if number > first and README.prose[number].startswith("## ")
    )
    return [snippet for snippet in README.snippets if first < snippet.line <= last]


def shell(script: str, folder: Path) -> str:
    """Run a script as a user would, with this interpreter's commands first; return what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_demo_ends_with_a_checkpoint_that_the_snippet_loads(tmp_path: Path) -> None:
    if not (sample_folder() / "manifest.csv").is_file():
        pytest.skip("the sample speech is not here: `fedhubert prepare sample`")
    commands, printed, code = below("## The demo")
    script = "\n".join(line for line in commands.text.splitlines() if not line.startswith("make "))
    said = shell(script, tmp_path)
    for word in ("valid loss", "by ignoring the input; above chance since"):
        assert word in said and word in printed.text
    assert "300" in shell(f"python - <<'END'\n{code.text}\nEND", tmp_path).split()
    assert (tmp_path / "outputs/demo/huggingface/config.json").is_file()


@pytest.mark.slow
def test_a_folder_becomes_a_model_in_huggingfaces_form(tmp_path: Path) -> None:
    write_tones(tmp_path / "calls", speakers=10)
    (commands,) = below("## Your own audio, from a folder to HuggingFace")
    assert len(commands.text.splitlines()) == 6
    script = commands.text.replace("/data/calls", str(tmp_path / "calls"))
    said = shell(script.replace("data.root=", f"{SMALL} data.root="), tmp_path)
    assert "10 speakers" in said
    assert {path.name for path in (tmp_path / "runs/calls-hf").iterdir()} >= {
        "config.json",
        "model.safetensors",
    }
    assert (tmp_path / "calls.html").stat().st_size > 10_000
