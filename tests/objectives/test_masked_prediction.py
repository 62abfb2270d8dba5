import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from torchaudio.models.wav2vec2 import components

from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig, TaskConfig
from fedhubert.errors import TargetsError
from fedhubert.models.frames import HUBERT_CONV_LAYERS, num_frames
from fedhubert.models.hubert import (
    HubertModel,
    HubertOutput,
    build_hubert,
    encoder_parameters,
    num_parameters,
)
from fedhubert.models.masking import FramePlaces, MaskSpec, span_mask
from fedhubert.models.reference import torchaudio_model
from fedhubert.objectives.masked_prediction import LossTerms, masked_prediction
from fedhubert.seeding import generator

TASK = TaskConfig()
NO_DROPOUT = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feature_dropout": 0.0,
    "layer_drop": 0.0,
}


@dataclass(frozen=True)
class Batch:
    waveforms_BN: Tensor
    labels_BT: Tensor | None
    mask_BT: Tensor

    @property
    def places(self) -> FramePlaces:
        return FramePlaces.of(self.mask_BT)


def _batch(rows: int, samples: int, num_clusters: int, dtype: torch.dtype = torch.float32) -> Batch:
    random = torch.Generator().manual_seed(2)
    frames = num_frames(samples)
    spec = MaskSpec(TASK.mask_probability, TASK.mask_length_frames, TASK.min_masks)
    return Batch(
        torch.randn(rows, samples, generator=random).to(dtype),
        torch.randint(0, num_clusters, (rows, frames), generator=random),
        torch.from_numpy(span_mask(rows, frames, spec, generator(0, "test"))),
    )


def _reference_loss(
    model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, unmasked_weight: float
) -> tuple[Tensor, int, int]:
    """torchaudio's own forward with the batch's mask, and the loss of its pretraining recipe."""
    assert batch.labels_BT is not None
    monkeypatch.setattr(components, "_compute_mask_indices", lambda *args, **kwargs: batch.mask_BT)
    model.logit_generator.skip_nomask = not unmasked_weight
    logits, others, feature_power = model(batch.waveforms_BN, batch.labels_BT + NUM_SPECIAL_ROWS)
    loss, frames = _cross_entropy(logits), len(logits)
    if unmasked_weight:
        loss, frames = loss + unmasked_weight * _cross_entropy(others), frames + len(others)
    return loss + 10.0 * feature_power * frames, int((logits.argmax(-1) == 0).sum()), frames


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")


@pytest.mark.parametrize(("grad_mult", "unmasked_weight"), [(0.1, 0.0), (1.0, 0.0), (1.0, 0.7)])
@pytest.mark.parametrize(
    "norms", [{}, {"layer_norm_first": True, "conv_norm": "layer_norm", "conv_bias": True}]
)
def test_loss_and_every_gradient_equal_torchaudios_in_float64(
    tiny_model_config: ModelConfig,
    norms: dict[str, Any],
    grad_mult: float,
    unmasked_weight: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_model_config.model_copy(
        update={**NO_DROPOUT, **norms, "feature_grad_mult": grad_mult}
    )
    model = build_hubert(config, 1).double().train()
    reference = torchaudio_model(config).double().train()
    reference.load_state_dict(model.state_dict())
    reference.feature_grad_mult = grad_mult if grad_mult < 1 else None
    batch = _batch(3, 8000, config.num_classes - NUM_SPECIAL_ROWS, torch.float64)

    terms = masked_prediction(model, batch, TaskConfig(unmasked_weight=unmasked_weight))
    terms.loss_sum.backward()
    monkeypatch.setattr(
        Tensor, "float", lambda self: self
    )  # torchaudio's similarity and penalty cast to float32
    loss, correct, frames = _reference_loss(reference, batch, monkeypatch, unmasked_weight)
    loss.backward()

    torch.testing.assert_close(terms.loss_sum, loss, rtol=1e-12, atol=1e-9)
    assert (terms.masked_frames, int(terms.correct), terms.frames) == (
        int(batch.mask_BT.sum()),
        correct,
        frames,
    )
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert (_gradient(parameter) - _gradient(expected[name])).abs().max() < 1e-9, name


def test_base_model_starts_as_torchaudios_and_has_its_gradients_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ModelConfig(
        name="base",
        conv_layers=HUBERT_CONV_LAYERS,
        embed_dim=768,
        num_layers=12,
        num_heads=12,
        ffn_dim=3072,
        **cast(Any, NO_DROPOUT),
    )
    model = build_hubert(config, 1).train()
    assert (num_parameters(model), encoder_parameters(model)) == (94_697_600, 94_370_944)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reference = torchaudio.models.hubert_pretrain_base(
            0.0, 0.0, 0.0, 0.0, 0.0, num_classes=504
        ).train()
    for (key, ours), (reference_key, theirs) in zip(
        model.state_dict().items(), reference.state_dict().items(), strict=True
    ):
        assert key == reference_key
        assert torch.equal(ours, theirs), key
    batch = _batch(1, 9000, 500)

    terms = masked_prediction(model, batch, TASK)
    terms.loss_sum.backward()
    loss, _, _ = _reference_loss(reference, batch, monkeypatch, 0.0)
    loss.backward()

    torch.testing.assert_close(terms.loss_sum, loss, rtol=1e-6, atol=0.0)
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        # The attention does not depend on the key's bias: its gradient is zero but for rounding, so its weight's gradient is the measure.
        scale = _gradient(expected[name.replace("k_proj.bias", "k_proj.weight")]).norm()
        assert scale > 0, name
        assert (_gradient(parameter) - _gradient(expected[name])).norm() <= 1e-5 * scale, name


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class _FixedModel:
    """Answers with given logits: three classes after the four special rows."""

    def __init__(self, logits: Tensor, conv_power: float) -> None:
        self.output = HubertOutput(logits, torch.tensor(conv_power), 3)

    def __call__(
        self, waveforms_BN: Tensor, mask_BT: Tensor, *, places: FramePlaces
    ) -> HubertOutput:
        return self.output


def _fixed(
    logits: list[list[float]],
    labels: Tensor | None,
    mask: list[list[bool]],
    conv_power: float = 0.0,
) -> LossTerms:
    model = cast(HubertModel, _FixedModel(torch.tensor(logits), conv_power))
    return masked_prediction(model, Batch(torch.zeros(1, 1200), labels, torch.tensor(mask)), TASK)


def test_hand_computed_sums() -> None:
    logits = [[0.0] * 7, [0, 0, 0, 0, 0, 0, math.log(6)]]
    terms = _fixed(logits, torch.tensor([[1, 0, 2]]), [[True, False, True]], conv_power=0.25)
    cross_entropy = math.log(7) + math.log(2)  # uniform over 7 rows; then 6 of 12
    assert float(terms.cross_entropy_sum) == pytest.approx(cross_entropy)
    assert float(terms.loss_sum) == pytest.approx(cross_entropy + 10.0 * 0.25 * 2)
    assert (int(terms.correct), terms.masked_frames) == (1, 2)


def test_cluster_i_is_row_i_plus_4() -> None:
    logits = [[0.0, 0, 0, 0, 9, 0, 0]]
    assert int(_fixed(logits, torch.tensor([[0, 1, 1]]), [[True, False, False]]).correct) == 1
    assert int(_fixed(logits, torch.tensor([[1, 0, 0]]), [[True, False, False]]).correct) == 0


def test_nothing_masked_adds_nothing(tiny_model_config: ModelConfig) -> None:
    batch = _batch(1, 4000, 100)
    terms = masked_prediction(
        build_hubert(tiny_model_config, 0),
        Batch(batch.waveforms_BN, batch.labels_BT, batch.mask_BT & False),
        TASK,
    )
    terms.loss_sum.backward()
    assert (float(terms.loss_sum.detach()), terms.masked_frames) == (0.0, 0)


def test_missing_or_misaligned_labels_are_refused() -> None:
    with pytest.raises(TargetsError, match="no pseudo-labels"):
        _fixed([[0.0] * 7], None, [[True, False, False]])
    with pytest.raises(TargetsError, match=r"\(1, 2\).*\(1, 3\)"):
        _fixed([[0.0] * 7], torch.tensor([[0, 1]]), [[True, False, False]])


def test_any_object_with_the_fields_is_a_batch(tiny_model_config: ModelConfig) -> None:
    found = _batch(2, 4000, 100)
    batch = SimpleNamespace(**vars(found), places=found.places, position=3)
    assert masked_prediction(build_hubert(tiny_model_config, 0), batch, TASK).masked_frames > 0
