"""The heads of fine-tuned models as HuggingFace has them: ``HubertForCTC`` with its tokenizer, and
``HubertForSequenceClassification``.

Both are what our objectives compute: a linear layer on the last layer; and layers mixed by learned
weights, projected, averaged and told apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedhubert.config import ModelConfig
from fedhubert.data.texts import BLANK, NEVER_WRITTEN, SPECIAL, Vocabulary

Values = Mapping[str, Any]

_NEVER = -1e4
"""A bias that no score makes up for; float16 has it, too."""


@dataclass(frozen=True)
class Head:
    """A head of an objective.

    Attributes:
        architecture: HuggingFace's class.
        pipeline: The hub's name of what the model is for.
        names: What our names begin with -> theirs.
        settings: Of the run's task and the encoder -> what ``config.json`` says beside the encoder.
        files: Of the run's task -> further JSON files, by name.
        never_written: Outputs that our decoding does not choose among: theirs has no such rule, so
            their biases are lowered.
    """

    architecture: str
    pipeline: str
    names: Mapping[str, str]
    settings: Callable[[Values, ModelConfig], Values]
    files: Callable[[Values], Mapping[str, Values]]
    never_written: tuple[int, ...] = ()

    def tensors(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the head's tensors under their names."""
        tensors = {
            theirs + name.removeprefix(ours): tensor.clone()
            for name, tensor in heads.items()
            for ours, theirs in self.names.items()
            if name.startswith(ours)
        }
        if "lm_head.bias" in tensors:
            tensors["lm_head.bias"][list(self.never_written)] = _NEVER
        return tensors


def head_of(heads: Mapping[str, Tensor]) -> Head | None:
    """Return what the head of a model is, by its tensors; None for one that HuggingFace has no
    place for, or none at all."""
    return next((HEADS[name] for key in heads if (name := key.split(".")[0]) in HEADS), None)


def pipeline_of(heads: Mapping[str, Tensor], format_name: str) -> str:
    """Return HuggingFace's name of what a model with these heads does in a format; empty where the
    format has the encoder alone."""
    head = head_of(heads) if format_name == "huggingface" else None
    return head.pipeline if head else ""


def _ctc_settings(task: Values, config: ModelConfig) -> Values:
    return {
        "vocab_size": len(Vocabulary(task["vocabulary"]).tokens),
        "pad_token_id": BLANK,
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
        "final_dropout": config.dropout,
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": True,
    }


def _ctc_files(task: Values) -> Mapping[str, Values]:
    tokens = Vocabulary(task["vocabulary"]).tokens
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    return {
        "vocab.json": {token: number for number, token in enumerate(tokens)},
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "processor_class": "Wav2Vec2Processor",
            **special,
            "word_delimiter_token": SPECIAL[-1],
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
            "clean_up_tokenization_spaces": False,
        },
        "special_tokens_map.json": special,
    }


def _label_settings(task: Values, config: ModelConfig) -> Values:
    return {
        "num_labels": len(task["labels"]),
        "id2label": {str(number): label for number, label in enumerate(task["labels"])},
        "label2id": {label: number for number, label in enumerate(task["labels"])},
        "use_weighted_layer_sum": True,
        "classifier_proj_size": task["projection_dim"],
    }


HEADS: Mapping[str, Head] = {
    "ctc_head": Head(
        "HubertForCTC",
        "automatic-speech-recognition",
        {"ctc_head.": "lm_head."},
        _ctc_settings,
        _ctc_files,
        tuple(NEVER_WRITTEN),
    ),
    "classify_head": Head(
        "HubertForSequenceClassification",
        "audio-classification",
        {"classify_head.": ""},
        _label_settings,
        lambda task: {},
    ),
}
"""By the module's name in our model."""
