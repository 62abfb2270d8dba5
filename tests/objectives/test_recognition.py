"""Characters by CTC: texts as tokens, the loss, greedy decoding and the figures."""

import builtins
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.config import CtcConfig, DataConfig, ModelConfig
from fedhubert.data.batching import Batch, Utterance
from fedhubert.data.manifest import Manifest
from fedhubert.data.texts import BLANK, SPACE, UNKNOWN, Vocabulary, frames_needed, normalised
from fedhubert.errors import ConfigError, DataError
from fedhubert.models.frames import num_frames
from fedhubert.objectives.recognition import error_counts
from fedhubert.objectives.spec import spec_of

VOCABULARY = Vocabulary("abcdefghijklmnopqrstuvwxyz'")
TASK = CtcConfig(text_column="text", vocabulary="abe'")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Don\u2019t  STOP,\tplease!", "don't stop please"),
        ("twenty-one (21)", "twenty one \ufffd\ufffd"),
        ("na\u00efve \u00e9t\u00e9", "na\ufffdve \ufffdt\ufffd"),
        ("\uff41\uff42", "ab"),
        (" . ", ""),
    ],
)
def test_texts_are_brought_to_the_vocabulary(text: str, reference: str) -> None:
    assert VOCABULARY.reference(text) == reference
    tokens = VOCABULARY.encode(text)
    assert len(tokens) == len(reference) and VOCABULARY.spelt(tokens) == reference
    assert [token == UNKNOWN for token in tokens] == [each == "\ufffd" for each in reference]
    upper = Vocabulary(VOCABULARY.characters.upper())
    assert upper.encode(text) == tokens and upper.reference(text) == reference.upper()
    assert normalised(normalised(text)) == normalised(text)


def test_a_path_is_decoded_as_ctc_has_it() -> None:
    a, b = VOCABULARY.encode("a b")[0], VOCABULARY.encode("a b")[2]
    path = [BLANK, SPACE, a, a, BLANK, a, SPACE, SPACE, b, BLANK, SPACE]
    assert VOCABULARY.decoded(path) == "aa b"
    assert frames_needed(VOCABULARY.encode("aab")) == 4 and frames_needed([]) == 0


def test_errors_are_jiwers_and_an_unwritable_character_is_one() -> None:
    counts = error_counts(["a bee", "be\ufffd"], ["a be", "be"])
    assert (counts.character_errors, counts.words, counts.word_errors) == (2, 3, 2)
    assert error_counts(["abc"], [""]).sums == {"character_errors": 3, "words": 1, "word_errors": 1}
    assert error_counts([], []).words == 0


def test_without_jiwer_it_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *more: Any) -> Any:
        if name == "jiwer":
            raise ImportError
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ConfigError, match=r"fedhubert\[asr\]"):
        spec_of(TASK).loss()


def batch_of(texts: list[str], lengths: list[int]) -> Batch:
    vocabulary = Vocabulary(TASK.vocabulary)
    waveforms = torch.randn(len(texts), max(lengths), generator=torch.Generator().manual_seed(0))
    said = tuple(
        Utterance(count, tuple(vocabulary.encode(text)))
        for text, count in zip(texts, lengths, strict=True)
    )
    mask = torch.zeros(len(texts), num_frames(max(lengths)), dtype=torch.bool)
    mask[:, 1:3] = True
    return Batch(waveforms, None, mask, 0, utterances=said)


def test_the_loss_is_the_sum_over_all_paths(tiny_model_config: ModelConfig) -> None:
    """By the definition: the likelihood of a text is that of every path that is decoded as it."""
    spec = spec_of(TASK)
    model = spec.build_model(tiny_model_config, 0).eval()
    batch = batch_of(["ab", "ee"], [1400, 1400])  # 4 frames, of which 9 tokens each
    terms = spec.loss()(model, batch)
    hidden, _ = model.transform(model.project(model.convolve(batch.waveforms_BN)))
    likely = model.get_submodule("ctc_head")(hidden).log_softmax(-1).detach().numpy()
    expected = 0.0
    for text, scores in zip(["ab", "ee"], likely, strict=True):
        tokens = tuple(Vocabulary(TASK.vocabulary).encode(text))
        paths = (
            path
            for path in product({BLANK, *tokens}, repeat=4)
            if tuple(
                t
                for t, before in zip(path, (None, *path[:-1]), strict=True)
                if t != before and t != BLANK
            )
            == tokens
        )
        expected -= np.log(
            sum(np.exp(sum(s[t] for s, t in zip(scores, p, strict=True))) for p in paths)
        )
    assert float(terms.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert terms.frames == 4 == terms.sums["characters"]


def test_masks_are_for_training_alone_and_figures_for_scores(
    tiny_model_config: ModelConfig,
) -> None:
    task = TASK.model_copy(
        update={"mask_probability": 0.5, "channel_mask_probability": 0.3, "channel_mask_length": 8}
    )
    model = spec_of(task).build_model(
        tiny_model_config.model_copy(
            update={
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "feature_dropout": 0.0,
                "layer_drop": 0.0,
            }
        ),
        0,
    )
    batch = batch_of(["a b", "bee e"], [8000, 9600])

    def loss(task: CtcConfig, seed: int = 0) -> float:
        torch.manual_seed(seed)
        return float(spec_of(task).loss()(model, batch).loss_sum)

    model.train()
    plain, masked = (
        loss(task.model_copy(update={"mask_probability": 0.0, "channel_mask_probability": 0.0})),
        loss(task),
    )
    assert masked != plain and loss(task) == masked and loss(task, 1) != masked
    model.eval()
    assert loss(task) == pytest.approx(plain, rel=1e-5)
    with torch.inference_mode():
        sums = spec_of(task).loss()(model, batch).sums
    assert tuple(sums) == spec_of(task).sum_names
    figures = spec_of(task).metrics({name: float(value) for name, value in sums.items()})
    assert sums["words"] == 4 and sums["characters"] == 8
    assert figures["wer"] == float(sums["word_errors"]) / 4 and sums["unwritable"] == 0
    assert "wer" not in spec_of(task).metrics({"ctc_loss_sum": 1.0, "characters": 2.0})
    largest = spec_of(task).largest(frames=60.0, utterances=2.0)
    assert all(0 <= float(value) <= largest[name] for name, value in sums.items())


def test_what_cannot_be_written_is_left_out() -> None:
    texts = ["ab", "", "?!", "a" * 30, "ab", "ab"]
    samples = np.array([16000, 16000, 16000, 16000, 300, 64000])
    manifest = Manifest(
        Path("/"), list("123456"), ["s"] * 6, samples, np.full(6, 16000, np.int32), {"text": texts}
    )
    data = DataConfig(max_seconds=3.0)
    found = spec_of(TASK).annotations(manifest, data)
    assert found is not None and found.usable.tolist() == [True, *[False] * 5]
    assert found.of(0).tolist() == Vocabulary(TASK.vocabulary).encode("ab")
    with pytest.raises(DataError, match="task.text_column=words: .*no column"):
        spec_of(TASK.model_copy(update={"text_column": "words"})).annotations(manifest, data)
