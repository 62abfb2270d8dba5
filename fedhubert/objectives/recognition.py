"""Characters of utterances by connectionist temporal classification (CTC, Graves et al. 2006): a
linear layer on the transformer's output, as in fairseq's and HuggingFace's fine-tuning
(``HubertForCTC``)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhubert.config import CtcConfig, DataConfig, MaskedTask, ModelConfig
from fedhubert.data.annotated import Annotations
from fedhubert.data.manifest import Manifest
from fedhubert.data.texts import (
    BLANK,
    NEVER_WRITTEN,
    SPECIAL,
    UNWRITABLE,
    Vocabulary,
    frames_needed,
)
from fedhubert.errors import ConfigError
from fedhubert.models.frames import frames_of
from fedhubert.models.heads import at_least_float32
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import LabelledBatch, Objective, TeacherSource, ratio
from fedhubert.objectives.spec import register
from fedhubert.objectives.utterances import UtteranceSpec, UtteranceTerms, hear

CHARACTERS_PER_S = 12
"""Of read speech, about."""


@register("ctc")
class Recognition(UtteranceSpec):
    """The negative log-likelihood of a transcript's characters, spaces among them."""

    counted = "characters"
    words: ClassVar[Mapping[str, str]] = {"loss": "loss", "wer": "WER", "cer": "CER"}

    def __init__(self, task: MaskedTask) -> None:
        super().__init__(task)
        assert isinstance(task, CtcConfig)
        self.settings = task

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What is written."""
        return Vocabulary(self.settings.vocabulary or "")

    @property
    def trained_sum_names(self) -> tuple[str, ...]:
        return ("ctc_loss_sum", "characters")

    @property
    def sum_names(self) -> tuple[str, ...]:
        errors = ("character_errors", "words", "word_errors", "unwritable")
        return (*self.trained_sum_names, *errors)

    def largest(self, frames: float, utterances: float) -> Mapping[str, float]:
        return {
            "ctc_loss_sum": 1000.0 * frames,
            "characters": frames,
            "character_errors": 2.0 * frames,
            "words": frames,
            "word_errors": 2.0 * frames,
            "unwritable": frames,
        }

    def said(self, value: str) -> Sequence[int]:
        return self.vocabulary.encode(value)

    def annotations(self, manifest: Manifest, data: DataConfig) -> Annotations:
        """Return the tokens of each transcript. One that is empty, longer than CTC can write in the
        utterance's frames, or of an utterance above ``data.max_seconds``, which would be cut, is
        left out."""
        error_counts([], [])  # says what is missing before anything is trained
        lengths, longest = manifest.lengths(data.sample_rate_hz), data.max_seconds
        frames = np.where(lengths <= round(longest * data.sample_rate_hz), frames_of(lengths), 0)
        said = super().annotations(manifest, data).of_row
        return Annotations(
            [
                tokens if frames_needed(tokens) <= most else ()
                for tokens, most in zip(said, frames, strict=True)
            ]
        )

    def example_labels(self, num_samples: int) -> tuple[int, ...]:
        characters = num_samples * CHARACTERS_PER_S // 16000
        last = len(self.vocabulary.tokens) - 1
        return tuple(len(SPECIAL) if place % 2 else last for place in range(max(1, characters)))

    def head(self, config: ModelConfig) -> nn.Module:
        return nn.Linear(config.embed_dim, len(self.vocabulary.tokens))

    def loss(self, teacher: TeacherSource | None = None) -> Objective:
        error_counts([], [])
        return self._terms

    def _terms(self, model: HubertModel, batch: LabelledBatch) -> UtteranceTerms:
        head, losses, characters = model.get_submodule(self.head_name), [], 0
        written: list[str] = []
        spoken: list[str] = []
        for heard in hear(model, batch, self.tuning):
            hidden_bTD = F.dropout(heard.last_bTD, model.config.dropout, model.training)
            scores_bTV = at_least_float32(head(hidden_bTD))
            said = [utterance.labels for utterance in heard.utterances]
            sizes = [len(tokens) for tokens in said]
            tokens = [token for tokens in said for token in tokens]
            loss = F.ctc_loss(
                scores_bTV.log_softmax(-1).transpose(0, 1),
                torch.tensor(tokens, device=scores_bTV.device),
                torch.full((len(said),), scores_bTV.shape[1]),
                torch.tensor(sizes),
                blank=BLANK,
                reduction="sum",
                zero_infinity=True,
            )
            losses.append(loss + self.penalty(heard, sum(sizes)))
            characters += sum(sizes)
            if not torch.is_grad_enabled():
                scores_bTV[..., NEVER_WRITTEN] = -math.inf
                written += map(self.vocabulary.decoded, scores_bTV.argmax(-1).tolist())
                spoken += map(self.vocabulary.spelt, said)
        loss_sum = sum(losses)
        assert isinstance(loss_sum, Tensor)
        sums: dict[str, Tensor | int] = {
            "ctc_loss_sum": loss_sum.detach(),
            "characters": characters,
        }
        if not torch.is_grad_enabled():
            unwritable = sum(text.count(UNWRITABLE) for text in spoken)
            sums |= {**error_counts(spoken, written).sums, "unwritable": unwritable}
        return UtteranceTerms(loss_sum, characters, sums)

    def combine(self, sums: Mapping[str, float]) -> dict[str, object]:
        """Return ``loss`` (nats a character) and ``characters``; where texts were decoded also
        ``wer`` and ``cer``, errors by words and by characters of the references, and which share of
        these the vocabulary lacks (``unwritable``)."""
        figures: dict[str, object] = {
            "loss": ratio(sums["ctc_loss_sum"], sums["characters"]),
            "characters": int(sums["characters"]),
        }
        if "words" in sums:
            figures |= {
                "wer": ratio(sums["word_errors"], sums["words"]),
                "cer": ratio(sums["character_errors"], sums["characters"]),
                "unwritable": ratio(sums["unwritable"], sums["characters"]),
            }
        return figures


@dataclass(frozen=True)
class ErrorCounts:
    """Insertions, deletions and substitutions of texts, and the words of their references."""

    character_errors: int
    words: int
    word_errors: int

    @property
    def sums(self) -> Mapping[str, int]:
        """By name."""
        return asdict(self)


def error_counts(references: Sequence[str], written: Sequence[str]) -> ErrorCounts:
    """Count the errors of texts by jiwer, all texts together.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise ConfigError(
            "task=ctc counts errors by jiwer, which is not installed: pip install 'fedhubert[asr]'",
            setting="task.name",
        ) from None
    if not references:
        return ErrorCounts(0, 0, 0)
    words = jiwer.process_words(list(references), list(written))
    characters = jiwer.process_characters(list(references), list(written))
    return ErrorCounts(
        characters.substitutions + characters.deletions + characters.insertions,
        words.substitutions + words.deletions + words.hits,
        words.substitutions + words.deletions + words.insertions,
    )
