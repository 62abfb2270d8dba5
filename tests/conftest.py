"""Fixtures shared by all tests."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from fedhubert.config import ModelConfig

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where ``make test`` has several processes, keep a file's tests in one (its module's fixtures are made once), and all whole runs in one: the
    workers of two would be more than the processors, and the run that they are compared with is trained once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            # both search the messages of one run
            path = path.replace("test_planted_leaks", "test_leaks")
            return "integration" if path.startswith("tests/integration/") else path

    return ByFile(config, log)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Folder of real speech with a ``manifest.csv``, named by the variable FEDHUBERT_CORPUS."""
    folder = os.environ.get("FEDHUBERT_CORPUS")
    if not folder:
        pytest.skip(
            "FEDHUBERT_CORPUS is not set: no folder of real speech with a manifest.csv to test on"
        )
    return Path(folder)


def write_tones(root: Path, speakers: int = 3) -> None:
    """Write so many speakers with four files of 1 to 2.5 s each to ``root``: a gliding tone in noise, at 16 kHz and 8 kHz."""
    rng = np.random.default_rng(0)
    for speaker in range(speakers):
        for number in range(4):
            rate = 8000 if number == 3 else 16000
            time_s = np.arange(int(rate * (1.0 + 0.5 * number))) / rate
            tone = np.sin(2 * np.pi * (150 + 60 * speaker + 200 * time_s) * time_s)
            samples = 0.3 * tone + 0.02 * rng.standard_normal(len(time_s))
            path = root / f"speaker{speaker}" / f"utterance{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples.astype(np.float32), rate, subtype="PCM_16")


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="session")
def tone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers with four files of 1 to 2.5 s each: a gliding tone in noise, at 16 kHz and 8 kHz."""
    root = tmp_path_factory.mktemp("tones")
    write_tones(root)
    return root


@pytest.fixture(scope="session")
def tiny_model_config() -> ModelConfig:
    """A HuBERT that runs in milliseconds."""
    return ModelConfig(
        name="test",
        conv_layers=(
            (32, 10, 5),
            (32, 3, 2),
            (32, 3, 2),
            (32, 3, 2),
            (32, 3, 2),
            (32, 2, 2),
            (32, 2, 2),
        ),
        embed_dim=48,
        num_layers=2,
        num_heads=4,
        ffn_dim=96,
        final_dim=32,
        num_classes=104,
    )
