"""Several sets of labels: a head each, losses added, figures of the first."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedhubert.config import ModelConfig
from fedhubert.errors import TargetsError
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.objectives.masked_prediction import LossTerms, masked_prediction

from .test_masked_prediction import NO_DROPOUT, TASK, _batch, _gradient

FIRST, SECOND = "logit_generator.", "label_heads.0."


def alone(
    model: HubertModel, labels_BT: Tensor, own: str, weight: float
) -> tuple[LossTerms, dict[str, Tensor]]:
    """Return the loss of a model whose only head is the one called ``own`` of ``model``, and its
    gradients under the names that they have in ``model``."""
    kept = {
        name.replace(own, FIRST): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith((own, "wav2vec2.", "mask_generator."))
    }
    rows = {"num_classes": len(kept[f"{FIRST}label_embeddings"]), "other_classes": ()}
    single = build_hubert(model.config.model_copy(update=rows), 1)
    single.load_state_dict(kept)
    batch = replace(_batch(2, 4000, 100), labels_BT=labels_BT)
    task = TASK.model_copy(update={"unmasked_weight": weight, "feature_penalty": 0.0})
    terms = masked_prediction(single, batch, task)
    terms.loss_sum.backward()
    gradients = {
        name.replace(FIRST, own): _gradient(parameter)
        for name, parameter in single.named_parameters()
    }
    return terms, gradients


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_two_sets_add_the_losses_that_each_head_has_alone(
    tiny_model_config: ModelConfig, weight: float
) -> None:
    """Each head's gradients are those that it has alone, the encoder's are their sum; figures are
    of the first."""
    both = tiny_model_config.model_copy(update={**NO_DROPOUT, "other_classes": (11,)})
    model, batch = build_hubert(both, 0), _batch(2, 4000, 100)
    assert batch.labels_BT is not None
    others_BT = (batch.labels_BT * 3) % 7
    two = replace(batch, labels_BT=torch.stack([batch.labels_BT, others_BT], dim=2))
    task = TASK.model_copy(update={"unmasked_weight": weight, "feature_penalty": 0.0})
    terms = masked_prediction(model, two, task)
    terms.loss_sum.backward()
    first, ours = alone(model, batch.labels_BT, FIRST, weight)
    second, theirs = alone(model, others_BT, SECOND, weight)
    torch.testing.assert_close(terms.loss_sum, first.loss_sum + second.loss_sum)
    assert float(second.cross_entropy_sum) > 1.0
    assert torch.equal(terms.cross_entropy_sum, first.cross_entropy_sum)
    assert (terms.frames, int(terms.correct)) == (first.frames, int(first.correct))
    scale = max(float(gradient.abs().max()) for gradient in ours.values())
    for name, parameter in model.named_parameters():
        expected = sum(one[name] for one in (ours, theirs) if name in one)
        torch.testing.assert_close(
            _gradient(parameter), expected, rtol=1e-4, atol=1e-5 * scale, msg=name
        )


@pytest.mark.parametrize("label_init", ["normal", "uniform"])
def test_further_heads_change_no_other_first_weight(
    tiny_model_config: ModelConfig, label_init: str
) -> None:
    single = tiny_model_config.model_copy(update={"label_init": label_init})
    several = single.model_copy(update={"other_classes": (9, 30)})
    first, more = build_hubert(single, 5).state_dict(), build_hubert(several, 5).state_dict()
    assert all(torch.equal(more[name], tensor) for name, tensor in first.items())
    assert more.keys() - first.keys() == {
        f"label_heads.{number}.{name}"
        for number in (0, 1)
        for name in ("label_embeddings", "final_proj.weight", "final_proj.bias")
    }
    assert not torch.equal(
        more["label_heads.0.final_proj.weight"], more["label_heads.1.final_proj.weight"]
    )


def test_labels_of_another_number_of_sets_are_refused(tiny_model_config: ModelConfig) -> None:
    model = build_hubert(tiny_model_config.model_copy(update={"other_classes": (9,)}), 0)
    with pytest.raises(TargetsError, match="1 sets for 2 heads"):
        masked_prediction(model, _batch(1, 4000, 100), TASK)
