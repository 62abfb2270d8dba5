"""One label for each utterance: layers mixed by learned weights, projected, averaged over frames,
and told apart by a linear layer, as SUPERB's utterance tasks do (2105.01051, and HuggingFace's
``HubertForSequenceClassification`` with ``use_weighted_layer_sum``). Layers are mixed as they are,
as in transformers 5; transformers 4 puts the final norm of a ``layer_norm_first`` encoder on the
last one."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhubert.config import ClassifyConfig, MaskedTask, ModelConfig
from fedhubert.models.heads import ClassifyHead
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import LabelledBatch, Objective, TeacherSource, ratio
from fedhubert.objectives.spec import register
from fedhubert.objectives.utterances import UtteranceSpec, UtteranceTerms, hear


@register("classify")
class Classification(UtteranceSpec):
    """Cross-entropy of an utterance's label."""

    counted = "utterances"
    words: ClassVar[Mapping[str, str]] = {
        "loss": "loss",
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
    }

    def __init__(self, task: MaskedTask) -> None:
        super().__init__(task)
        assert isinstance(task, ClassifyConfig)
        self.settings = task

    @property
    def trained_sum_names(self) -> tuple[str, ...]:
        return ("label_loss_sum", "utterances", "correct")

    @property
    def sum_names(self) -> tuple[str, ...]:
        labels = range(len(self.settings.labels))
        return (
            *self.trained_sum_names,
            *(f"confusion_{said}_{heard}" for said in labels for heard in labels),
        )

    def largest(self, frames: float, utterances: float) -> Mapping[str, float]:
        return {
            **dict.fromkeys(self.sum_names, utterances),
            "label_loss_sum": 1000.0 * utterances,
        }

    def said(self, value: str) -> Sequence[int]:
        labels = self.settings.labels
        return (labels.index(value),) if value in labels else ()

    def example_labels(self, num_samples: int) -> tuple[int, ...]:
        return (0,)

    def head(self, config: ModelConfig) -> nn.Module:
        task = self.settings
        return ClassifyHead(
            config.num_layers, config.embed_dim, task.projection_dim, len(task.labels)
        )

    def loss(self, teacher: TeacherSource | None = None) -> Objective:
        return self._terms

    def _terms(self, model: HubertModel, batch: LabelledBatch) -> UtteranceTerms:
        head, losses, targets, scores = model.get_submodule(self.head_name), [], [], []
        for heard in hear(model, batch, self.tuning):
            scores_bC = head(heard.layers)
            said = [utterance.labels[0] for utterance in heard.utterances]
            targets_b = torch.tensor(said, device=scores_bC.device)
            loss = F.cross_entropy(scores_bC, targets_b, reduction="sum")
            losses.append(loss + self.penalty(heard, len(said)))
            targets.append(targets_b)
            scores.append(scores_bC.detach())
        loss_sum, said_B, best_B = sum(losses), torch.cat(targets), torch.cat(scores).argmax(-1)
        assert isinstance(loss_sum, Tensor)
        sums: dict[str, Tensor | int] = {
            "label_loss_sum": loss_sum.detach(),
            "utterances": len(said_B),
            "correct": (said_B == best_B).sum(),
        }
        if not torch.is_grad_enabled():
            count = len(self.settings.labels)
            counts = torch.bincount(said_B * count + best_B, minlength=count**2).tolist()
            names = self.sum_names[len(self.trained_sum_names) :]
            sums |= dict(zip(names, counts, strict=True))
        return UtteranceTerms(loss_sum, len(said_B), sums)

    def combine(self, sums: Mapping[str, float]) -> dict[str, object]:
        """Return ``loss`` (nats an utterance), ``accuracy`` and ``utterances``; where confusions
        were counted also ``macro_f1`` (the mean over labels that were said or heard) and
        ``confusion`` [said][heard]."""
        utterances = sums["utterances"]
        figures: dict[str, object] = {
            "loss": ratio(sums["label_loss_sum"], utterances),
            "accuracy": ratio(sums["correct"], utterances),
            "utterances": int(utterances),
        }
        if "confusion_0_0" in sums:
            labels = range(len(self.settings.labels))
            table = [
                [int(sums[f"confusion_{said}_{heard}"]) for heard in labels] for said in labels
            ]
            figures |= {"macro_f1": macro_f1(table), "confusion": table}
        return figures


def macro_f1(confusion: Sequence[Sequence[int]]) -> float:
    """Return the mean of 2 TP / (2 TP + FP + FN) over the labels that were said or heard, from
    counts [said][heard]; 0 without any."""
    scores = []
    for label, row in enumerate(confusion):
        heard = sum(other[label] for other in confusion)
        if sum(row) + heard:
            scores.append(2 * row[label] / (sum(row) + heard))
    return sum(scores) / len(scores) if scores else 0.0
