"""Fine-tuned models as programs: their scores, what these stand for, and a script that says it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fedhubert.cli import main
from fedhubert.config import ClassifyConfig, CtcConfig, FineTuneTask, ModelConfig
from fedhubert.data.texts import NEVER_WRITTEN, SPECIAL, Vocabulary

from .common import SHAPES
from .test_finetuned import CTC_TASK, LABEL_TASK, layers_of, noise, tuned
from .test_finetuned import SPECIAL as UMLAUTS
from .test_programs import ALONE, onnxruntime, run_onnx


def exported(path: Path, out: Path, *flags: str) -> Path:
    command = ["export", "--checkpoint", str(path), "--format", "onnx", "--out", str(out), *flags]
    assert main(command) == 0
    return out


def said_by_script(folder: Path, audio: Path) -> tuple[str, float]:
    """What the script says, in a process that cannot import torch, from another folder."""
    command = [sys.executable, "-c", ALONE, str(folder / "infer.py"), str(audio)]
    done = subprocess.run(command, cwd=audio.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, said, score = done.stdout.rstrip("\n").split("\t")
    assert path == str(audio)
    return said, float(score)


@pytest.mark.parametrize("shape", ["base", "large"])
@pytest.mark.parametrize("task", [CTC_TASK, UMLAUTS, LABEL_TASK], ids=["ctc", "umlauts", "labels"])
def test_the_script_says_what_the_model_does(
    tiny_model_config: ModelConfig, tmp_path: Path, shape: str, task: FineTuneTask
) -> None:
    onnxruntime()
    path, model = tuned(tmp_path / "run", tiny_model_config.model_copy(update=SHAPES[shape]), task)
    out = exported(path, tmp_path / "onnx")
    layers, last = layers_of(model, noise())
    with torch.no_grad():
        name = f"{task.name}_head"
        scores = model.get_submodule(name)(layers if task.name == "classify" else last)[0]
    (found,) = run_onnx(out, noise()[None]).values()
    assert np.abs(found[0] - scores.numpy()).max() <= 1e-5 * max(1.0, float(scores.abs().max()))
    soundfile.write(tmp_path / "a speech.wav", noise(), 16_000, subtype="FLOAT")
    said, score = said_by_script(out, tmp_path / "a speech.wav")
    if isinstance(task, ClassifyConfig):
        expected, shares = task.labels[int(scores.argmax())], scores.softmax(-1).max()
    else:
        assert isinstance(task, CtcConfig)
        scores[:, NEVER_WRITTEN] = -torch.inf
        expected = Vocabulary(str(task.vocabulary)).decoded(scores.argmax(-1).tolist())
        shares = scores.softmax(-1).amax(-1).log().mean().exp()
    assert expected and said == expected
    assert score == pytest.approx(float(shares), abs=1e-3)


@pytest.mark.parametrize("task", [CTC_TASK, LABEL_TASK], ids=["ctc", "labels"])
def test_labels_and_tokens_are_in_the_graph_and_beside_it(
    tiny_model_config: ModelConfig, tmp_path: Path, task: FineTuneTask
) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime()
    path, _ = tuned(tmp_path / "run", tiny_model_config, task)
    out = exported(path, tmp_path / "onnx", "--int8")
    facts = {each.key: each.value for each in onnx.load(out / "model.onnx").metadata_props}
    name = "labels" if task.name == "classify" else "vocabulary"
    beside = json.loads((out / f"{name}.json").read_text())
    assert json.loads(facts["answers"]) == beside
    if task.name == "classify":
        assert beside == {"labels": ["low", "mid", "high"]}
    else:
        assert beside["tokens"] == [*SPECIAL, *"lowmidhg"]
        assert (beside["blank"], beside["space"]) == (0, 4)
    card = (out / "README.md").read_text()
    assert "(scores,)" in card and f"`{name}.json` says" in card
    does = "audio-classification" if task.name == "classify" else "automatic-speech-recognition"
    assert f'pipeline_tag: "{does}"' in card
    layers = exported(path, tmp_path / "layers", "--layers", "0,2")
    assert list(run_onnx(layers, noise()[None])) == ["layer_0", "layer_2"]
    assert 'pipeline_tag: "feature-extraction"' in (layers / "README.md").read_text()
    assert (
        not (layers / f"{name}.json").exists() and "scores" not in (layers / "infer.py").read_text()
    )


def test_torch_export_gives_the_same_scores(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    path, model = tuned(tmp_path / "run", tiny_model_config, LABEL_TASK)
    out = tmp_path / "pt2"
    command = ["export", "--checkpoint", str(path), "--format", "torch_export", "--out", str(out)]
    assert main(command) == 0
    (scores,) = torch.export.load(out / "model.pt2").module()(torch.from_numpy(noise())[None])
    with torch.no_grad():
        ours = model.get_submodule("classify_head")(layers_of(model, noise())[0])
    torch.testing.assert_close(scores, ours, rtol=0, atol=1e-5)
    assert json.loads((out / "labels.json").read_text()) == {"labels": ["low", "mid", "high"]}
