"""The environments that people have: s3prl 0.4.18 beside torch 2.0.1 and transformers 4.40, as the documentation has them, with s3prl's own
``run_downstream.py``."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from fedhubert.config import ModelConfig
from fedhubert.formats.export import export
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import HubertModel
from fedhubert.runs.store import RoundStore

from .common import SHAPES, saved, trained

pytestmark = pytest.mark.slow

RECIPE = [
    "torch==2.0.1",
    "torchaudio==2.0.2",
    "numpy<2",
    "huggingface_hub<1",
    "transformers<4.41",
    "setuptools<81",
    "s3prl==0.4.18",
    "catalyst==22.4",
    "tensorboardX",
    "soundfile",
]
NEWEST_PYTHON = (3, 11)
"""torch 2.0.1 has no wheel for a later one."""
STEPS = 3

HIDDEN_STATES = """
import json, sys, numpy, torch, transformers
from s3prl.upstream.hf_hubert.hubconf import hf_hubert_custom
from s3prl.upstream.hubert.hubconf import hubert_local
assert transformers.__version__.startswith("4.40"), transformers.__version__
waveform = torch.from_numpy(numpy.load(sys.argv[1]))
for kind, path, out in json.loads(sys.argv[2]):
    upstream = {"hubert_local": hubert_local, "hf_hubert_custom": hf_hubert_custom}[kind](path).eval()
    with torch.no_grad():
        states = upstream([waveform])["hidden_states"]
    numpy.save(out, torch.stack([state[0] for state in states]).numpy())
"""

CONFIG = f"""
runner: {{total_steps: {STEPS}, gradient_clipping: 1, gradient_accumulate_steps: 1, log_step: 1,
  eval_step: {STEPS}, save_step: 1000, max_keep: 1, eval_dataloaders: [dev, test]}}
optimizer: {{name: TorchOptim, torch_optim_name: Adam, lr: 1.0e-3}}
downstream_expert:
  datarc: {{speech_commands_root: ROOT/train, speech_commands_test_root: ROOT/test, num_workers: 0, batch_size: 4}}
  modelrc: {{projector_dim: 16, select: UtteranceLevel, UtteranceLevel: {{pooling: MeanPooling}}}}
"""


def _python() -> str:
    if sys.version_info[:2] <= NEWEST_PYTHON:
        return sys.executable
    found = shutil.which("python3.11") or shutil.which("python3.10")
    if found is None:
        pytest.skip("torch 2.0.1 needs Python 3.11 or older, and there is none here")
    return found


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old environment's Python. FEDHUBERT_S3PRL_ENV names a folder where it is kept for the next call; it takes 4.5 GB."""
    kept = os.environ.get("FEDHUBERT_S3PRL_ENV")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("old") / "environment"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        subprocess.run([_python(), "-m", "venv", "--clear", str(folder)], check=True)
        installed = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--no-cache-dir", *RECIPE],
            capture_output=True,
            text=True,
        )
        if installed.returncode:
            pytest.skip(f"the old environment cannot be had: {installed.stderr.splitlines()[-1]}")
        (folder / "complete").touch()
    return python


def _run(python: Path, *arguments: str, folder: Path) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env=environment | offline | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def speech_commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus laid out like Speech Commands: a tone of its own for each word, speakers on both sides of s3prl's split."""
    root = tmp_path_factory.mktemp("speech commands")
    random = np.random.default_rng(0)

    def write(path: Path, tone_hz: float, seconds: float = 1.0) -> None:
        time_s = np.arange(int(16000 * seconds)) / 16000
        samples = 0.3 * np.sin(2 * np.pi * tone_hz * time_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = 0.02 * random.standard_normal(len(time_s))
        soundfile.write(path, (samples + noise).astype(np.float32), 16000, subtype="PCM_16")

    for number, word in enumerate(("yes", "no", "go", "bed")):
        for speaker in _speakers():
            write(root / "train" / word / f"{speaker}_nohash_0.wav", 200.0 * (number + 1))
        tested = "_unknown_" if word == "bed" else word
        write(root / "test" / tested / "0_nohash_0.wav", 200.0 * (number + 1))
    write(root / "train" / "_background_noise_" / "hum.wav", 50.0, seconds=2.5)
    (root / "train" / "_background_noise_" / "README.md").touch()
    return root


def _speakers() -> list[str]:
    """Six speakers whom s3prl's split by the hash of their name trains on, and two whom it holds out."""
    wanted = {True: 2, False: 6}
    chosen = []
    for number in range(1000):
        name = f"{number:08x}"
        place = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * (100.0 / (2**27 - 1))
        held_out = place < 10
        if (held_out or place > 20) and wanted[held_out]:
            wanted[held_out] -= 1
            chosen.append(name)
    return chosen


def _student(folder: Path, model: HubertModel) -> Path:
    """A round of a distillation: heads on top, and a masked-prediction head that nothing trained."""
    task = {"name": "distill", "teacher": "x", "layers": [1]}
    return RoundStore(folder).save(
        4,
        model.state_dict() | {"distill_heads.layers.1.weight": torch.ones(48, 48)},
        config={"model": model.config.model_dump(mode="json"), "task": task},
        federated_metrics={},
        resume=None,
    )


@pytest.fixture(scope="session")
def upstreams(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_config: ModelConfig
) -> dict[str, tuple[str, Path, HubertModel]]:
    """By name: the upstream of s3prl that loads it, its checkpoint, and the model that it is of."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for shape in ("base", "large"):
        model = trained(tiny_model_config.model_copy(update=SHAPES[shape]))
        for kind, path in (
            ("round", saved(folder / shape, model)),
            ("student", _student(folder / f"{shape} student", model)),
        ):
            checkpoint = load_checkpoint(path)
            hugging = export(checkpoint, "huggingface", folder / f"{shape} {kind} hf")
            s3prl = export(checkpoint, "s3prl", folder / f"{shape} {kind} s3prl")
            found[f"{shape} {kind}"] = ("hubert_local", path, model)
            found[f"{shape} {kind} huggingface"] = ("hf_hubert_custom", hugging, model)
            found[f"{shape} {kind} s3prl"] = ("hubert_local", s3prl / "hubert_s3prl.pt", model)
    return found


def test_the_old_environment_computes_the_same_hidden_states(
    old_python: Path, upstreams: dict[str, tuple[str, Path, HubertModel]], tmp_path: Path
) -> None:
    waveform = torch.randn(9123, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "waveform.npy", waveform.numpy())
    files = {name: str(tmp_path / f"{name}.npy") for name in upstreams}
    asked = [[kind, str(path), files[name]] for name, (kind, path, _) in upstreams.items()]
    arguments = (str(tmp_path / "waveform.npy"), json.dumps(asked))
    _run(old_python, "-c", HIDDEN_STATES, *arguments, folder=tmp_path)
    for name, (_, _, model) in upstreams.items():
        with torch.no_grad():
            ours = model.extract_features(waveform[None])
            if model.config.layer_norm_first:
                ours[-1] = model.wav2vec2.encoder.transformer.layer_norm(ours[-1])
        theirs = torch.from_numpy(np.load(files[name]))[1:]
        difference = (torch.cat(ours) - theirs).abs().max()
        assert float(difference) < 1e-4, (name, float(difference))


@pytest.mark.parametrize(
    "name", ["base round", "base round huggingface", "base student", "base student huggingface"]
)
def test_run_downstream_trains_on_it(
    old_python: Path,
    upstreams: dict[str, tuple[str, Path, HubertModel]],
    speech_commands: Path,
    tmp_path: Path,
    name: str,
) -> None:
    kind, path, _ = upstreams[name]
    (tmp_path / "config.yaml").write_text(CONFIG.replace("ROOT", str(speech_commands)))
    said = _run(
        old_python,
        *("-m", "s3prl.run_downstream", "-m", "train", "-d", "speech_commands", "--device", "cpu"),
        *("-u", kind, "-k", str(path), "-c", "config.yaml", "-p", str(tmp_path / "experiment")),
        folder=tmp_path,
    )
    assert "is NaN" not in said
    scores: dict[str, Any] = {}
    for line in (tmp_path / "experiment" / "log.log").read_text().splitlines():
        split, _, score = line.partition(f" at step {STEPS}: ")
        scores[split] = float(score or "nan")
    assert {"dev", "test"} <= scores.keys()
    assert all(math.isfinite(scores[split]) for split in ("dev", "test"))
    assert (tmp_path / "experiment" / "dev-best.ckpt").is_file() or scores["dev"] == 0.0
