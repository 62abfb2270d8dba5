"""Labels of utterances: the encoder over whole utterances, the frozen share, and the figures."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedhubert.config import ClassifyConfig, ClientConfig, ModelConfig
from fedhubert.data.batching import Batch, Utterance
from fedhubert.models.frames import num_frames
from fedhubert.objectives.classification import macro_f1
from fedhubert.objectives.spec import build_model, spec_of
from fedhubert.objectives.utterances import channel_spans
from fedhubert.training.stepping import Trainer

TASK = ClassifyConfig(label_column="word", labels=("yes", "no", "maybe"))
STILL = ClientConfig(lr=0.01, weight_decay=0.1, warmup_fraction=0.0)


def whole(lengths: Sequence[int], seed: int = 0) -> Batch:
    """Return a batch of noise of these lengths, with labels in turn."""
    rng = torch.Generator().manual_seed(seed)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, count in enumerate(lengths):
        waveforms[row, :count] = torch.randn(count, generator=rng)
    said = tuple(Utterance(count, (row % 3,)) for row, count in enumerate(lengths))
    mask = torch.zeros(len(lengths), num_frames(max(lengths)), dtype=torch.bool)
    return Batch(waveforms, None, mask, 0, utterances=said)


def test_an_utterance_has_the_loss_that_it_has_alone(tiny_model_config: ModelConfig) -> None:
    spec = spec_of(TASK)
    model = spec.build_model(tiny_model_config, 0).eval()
    lengths = [8000, 9600, 8000, 12345]
    batch = whole(lengths)
    together = spec.loss()(model, batch)
    alone = [
        spec.loss()(
            model,
            replace(batch, waveforms_BN=batch.waveforms_BN[[row], :count], utterances=(said,)),
        )
        for row, (count, said) in enumerate(zip(lengths, batch.utterances or (), strict=True))
    ]
    assert together.frames == 4
    summed = sum(float(terms.loss_sum) for terms in alone)
    assert float(together.loss_sum) == pytest.approx(summed, rel=1e-5)
    pieces = [spec.loss()(model, piece) for piece in batch.split(3)]
    assert sum(float(terms.loss_sum) for terms in pieces) == pytest.approx(summed, rel=1e-5)
    assert batch.audio_s == sum(lengths) / 16000 == sum(p.audio_s for p in batch.split(3))


def test_macro_f1_is_scikit_learns_and_counts_are_sums() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    said, heard = rng.integers(0, 5, 200), rng.integers(0, 4, 200)
    table = metrics.confusion_matrix(said, heard)
    assert macro_f1(table.tolist()) == pytest.approx(
        metrics.f1_score(said, heard, average="macro", zero_division=0)
    )
    assert macro_f1([[0, 0], [0, 3]]) == 1.0 and macro_f1([[0]]) == 0.0


def test_figures_of_a_score(tiny_model_config: ModelConfig) -> None:
    spec = spec_of(TASK)
    model = spec.build_model(tiny_model_config, 0).eval()
    with torch.inference_mode():
        sums = spec.loss()(model, whole([8000] * 6)).sums
    assert tuple(sums) == spec.sum_names
    figures = spec.metrics({name: float(value) for name, value in sums.items()})
    table = np.array(figures["confusion"])
    assert table.sum(1).tolist() == [2, 2, 2] and figures["utterances"] == 6
    assert figures["accuracy"] == np.trace(table) / 6
    trained = spec.loss()(model, whole([8000] * 6)).sums
    assert tuple(trained) == spec.trained_sum_names
    largest = spec.largest(frames=300.0, utterances=6.0)
    assert set(largest) == set(spec.sum_names)
    assert all(0 <= float(value) <= largest[name] for name, value in sums.items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_the_encoder_stands_still_for_its_share_and_then_moves_at_its_own_rate(
    tiny_model_config: ModelConfig, optimizer: str
) -> None:
    client = STILL.model_copy(update={"optimizer": optimizer})
    moved: dict[tuple[float, float], dict[str, float]] = {}
    for factor in (1.0, 0.1):
        task = TASK.model_copy(update={"freeze_share": 0.5, "encoder_lr_factor": factor})
        for progress in (0.49, 0.5):
            model = build_model(tiny_model_config, task, 0)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            trainer = Trainer(
                model, client, task, 0, 0, torch.device("cpu"), 0.01, spec_of(task).loss()
            )
            trainer.step([whole([8000] * 3)], 0.01, progress)
            assert all(value.requires_grad for value in trainer.parameters)
            moved[factor, progress] = {
                part: float(
                    sum(
                        (value - before[name]).norm()
                        for name, value in model.state_dict().items()
                        if name.startswith(part)
                    )
                )
                for part in ("wav2vec2.", "classify_head.", "mask_generator.", "logit_generator.")
            }
    for factor in (1.0, 0.1):
        assert moved[factor, 0.49]["wav2vec2."] == 0.0 < moved[factor, 0.5]["wav2vec2."]
        assert moved[factor, 0.49]["classify_head."] > 0.0
        for part in ("mask_generator.", "logit_generator."):
            assert moved[factor, 0.5][part] == 0.0
    ratio = moved[0.1, 0.5]["wav2vec2."] / moved[1.0, 0.5]["wav2vec2."]
    assert ratio == pytest.approx(0.1, rel=0.05)
    assert moved[0.1, 0.5]["classify_head."] == pytest.approx(
        moved[1.0, 0.5]["classify_head."], rel=0.02
    )


def test_channels_are_masked_in_spans_by_the_seed() -> None:
    torch.manual_seed(3)
    first = channel_spans(4, 192, 0.5, 32)
    torch.manual_seed(3)
    assert torch.equal(first, channel_spans(4, 192, 0.5, 32))
    assert first.any(1).all() and not first.all(1).any()
    runs = (first.int().diff(dim=1) == 1).sum(1)
    assert (first.sum(1) >= 32).all() and (runs <= 4).all()
    assert channel_spans(2, 16, 1.0, 64).all()
