"""Fine-tuned models in HuggingFace's pipelines, and as the start of other runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import ClassifyConfig, CtcConfig, FineTuneTask, ModelConfig
from fedhubert.data.audio import read_audio
from fedhubert.data.manifest import Manifest
from fedhubert.data.texts import NEVER_WRITTEN, Vocabulary
from fedhubert.formats.importing import import_encoder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.formats.source import Source
from fedhubert.formats.starting import load_into
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.spec import build_model
from fedhubert.runs.store import RoundStore
from tests.finetuning import CLASSIFY, CTC, RUN, write_words

from .common import SHAPES

CTC_TASK = CtcConfig(text_column="text", vocabulary="lowmidhg", mask_probability=0.1)
LABEL_TASK = ClassifyConfig(label_column="pitch", labels=("low", "mid", "high"))
SPECIAL = CTC_TASK.model_copy(update={"vocabulary": "AB\u00c4'"})


def tuned(folder: Path, config: ModelConfig, task: FineTuneTask) -> tuple[Path, HubertModel]:
    """Save a model whose every weight is moved, and whose outputs change from frame to frame."""
    model = build_model(config, task, 0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    plain = {"model": config.model_dump(mode="json"), "task": task.model_dump(mode="json")}
    path = RoundStore(folder).save(
        1, model.state_dict(), config=plain, federated_metrics={}, resume=None
    )
    return path, model.eval()


def exported(path: Path, out: Path) -> Path:
    command = ["export", "--checkpoint", str(path), "--format", "huggingface", "--out", str(out)]
    assert main(command) == 0
    return out


def noise(count: int = 16000) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(count).astype(np.float32)


def layers_of(
    model: HubertModel, waveform: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    count = model.config.num_layers
    hidden = model.project(model.convolve(torch.from_numpy(waveform)[None]))
    last, kept = model.transform(hidden, range(count + 1))
    return [kept[layer] for layer in range(count + 1)], last


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("task", [CTC_TASK, SPECIAL], ids=["lower", "upper"])
def test_the_pipeline_of_speech_recognition_writes_what_ours_does(
    tiny_model_config: ModelConfig, tmp_path: Path, shape: str, task: CtcConfig
) -> None:
    transformers = pytest.importorskip("transformers")
    path, model = tuned(tmp_path / "run", tiny_model_config.model_copy(update=SHAPES[shape]), task)
    out = exported(path, tmp_path / "hf")
    theirs = transformers.HubertForCTC.from_pretrained(out).eval()
    with torch.no_grad():
        scores = model.get_submodule("ctc_head")(layers_of(model, noise())[1])
        logits = theirs(torch.from_numpy(noise())[None]).logits
    assert float(logits[..., NEVER_WRITTEN].max()) < -1e3
    logits[..., NEVER_WRITTEN] = scores[..., NEVER_WRITTEN] = -math.inf
    torch.testing.assert_close(logits, scores, rtol=0, atol=2e-5)
    written = transformers.pipeline("automatic-speech-recognition", str(out))(noise())["text"]
    vocabulary = Vocabulary(task.vocabulary)
    ours = vocabulary.decoded(scores[0].argmax(-1).tolist())
    assert written == ours
    assert len(vocabulary.tokens) == len(json.loads((out / "vocab.json").read_text()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    path_of = [0, 4, 5, 5, 0, 5, 6, 4, 4, 8, 0]
    assert tokenizer.decode(path_of) == vocabulary.decoded(path_of)
    assert tokenizer(vocabulary.spelt([5, 4, 6])).input_ids == [5, 4, 6]
    card = (out / "README.md").read_text()
    assert 'pipeline_tag: "automatic-speech-recognition"' in card and "pipeline(" in card


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pipeline_of_audio_classification_says_what_ours_does(
    tiny_model_config: ModelConfig, tmp_path: Path, shape: str
) -> None:
    transformers = pytest.importorskip("transformers")
    config = tiny_model_config.model_copy(update=SHAPES[shape])
    path, model = tuned(tmp_path / "run", config, LABEL_TASK)
    out = exported(path, tmp_path / "hf")
    with torch.no_grad():
        shares = model.get_submodule("classify_head")(layers_of(model, noise())[0]).softmax(-1)[0]
    found = transformers.pipeline("audio-classification", str(out))(noise(), top_k=3)
    assert {each["label"]: each["score"] for each in found} == pytest.approx(
        dict(zip(LABEL_TASK.labels, shares.tolist(), strict=True)), abs=2e-5
    )
    assert 'pipeline_tag: "audio-classification"' in (out / "README.md").read_text()


@pytest.mark.parametrize("form", ["round", "huggingface", "torchaudio"])
def test_a_fine_tuned_encoder_is_where_another_run_begins(
    tiny_model_config: ModelConfig, tmp_path: Path, form: str
) -> None:
    path, model = tuned(tmp_path / "run", tiny_model_config, CTC_TASK)
    if form != "round":
        out = tmp_path / form
        assert main(["export", "--checkpoint", str(path), "--format", form, "--out", str(out)]) == 0
        path = out
    fresh = build_model(tiny_model_config, LABEL_TASK, 5)
    head = {name: value.clone() for name, value in fresh.state_dict().items() if "head" in name}
    load_into(fresh, import_encoder(path, like=tiny_model_config))
    for name, value in fresh.state_dict().items():
        if name.startswith("wav2vec2."):
            assert torch.equal(value, model.state_dict()[name])
        elif "head" in name:
            assert torch.equal(value, head[name])


def test_a_card_and_a_checkpoint_hold_labels_and_no_text(
    tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    path, _ = tuned(tmp_path / "run", tiny_model_config, LABEL_TASK)
    source = Source.of(load_checkpoint(path))
    assert set(source.heads) == {
        f"classify_head.{name}"
        for name in (
            "layer_weights",
            "projector.weight",
            "projector.bias",
            "classifier.weight",
            "classifier.bias",
        )
    }
    assert "task.labels" in (exported(path, tmp_path / "hf") / "README.md").read_text()


@pytest.mark.parametrize(
    ("task", "flag", "figures"),
    [
        (CTC, ["--text-column", "text"], {"wer", "cer"}),
        (CLASSIFY, ["--label-column", "pitch"], {"accuracy", "macro_f1"}),
    ],
    ids=["ctc", "classify"],
)
def test_evaluate_scores_a_run_as_training_does(
    tmp_path: Path,
    task: list[str],
    flag: list[str],
    figures: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = write_words(tmp_path / "words")
    config = compose([*RUN, *task, f"data.manifest={manifest}"])
    model = build_model(config.model, config.task, 0)
    RoundStore(tmp_path / "checkpoints").save(
        1,
        model.state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )
    command = [
        "evaluate",
        "--checkpoint",
        str(tmp_path),
        "--manifest",
        str(manifest),
        *flag,
        "--out",
        str(tmp_path / "found.json"),
    ]
    assert main(command) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["figures"]) == figures and found["utterances"] == 24 and found["left_out"] == 3
    for figure in found["figures"].values():
        low, high = figure["interval"]
        assert low <= figure["value"] <= high
    assert "95 % over speakers" in capsys.readouterr().out
    other = ["--label-column", "pitch"] if "--text-column" in flag else ["--text-column", "text"]
    assert main([*command[:5], *other]) == 1
    assert main([*command[:5], flag[0], "nothing"]) == 1
    assert "nothing" in capsys.readouterr().err
    assert read_audio(Manifest.read(manifest).recording(0), 16000) is not None
