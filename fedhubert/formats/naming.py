"""Names of one HuBERT encoder's tensors here, in fairseq (and s3prl), in HuggingFace and in
torchaudio.

This package's names are those of ``torchaudio.models.hubert_pretrain_model``. ``#`` stands for the
number of a layer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fedhubert.errors import CheckpointError

ENCODER, MASK, HEAD = "wav2vec2.", "mask_generator.", "logit_generator."
LABELS = "logit_generator.label_embeddings"
OTHER_HEADS = "label_heads."
"""Of further sets of labels, which fairseq's form alone has a place for."""
PROJECTION = "wav2vec2.encoder.feature_projection.projection."

_CONV = "wav2vec2.feature_extractor.conv_layers.#."
_TRANSFORMER = "wav2vec2.encoder.transformer."
_POSITIONS = f"{_TRANSFORMER}pos_conv_embed.conv."
_LAYER = f"{_TRANSFORMER}layers.#."


@dataclass(frozen=True)
class Naming:
    """Pairs of prefixes, ours and theirs; the first that matches a name decides, and what follows
    the prefix stays."""

    pairs: tuple[tuple[str, str], ...]

    @cached_property
    def _rules(self) -> tuple[list[tuple[re.Pattern[str], str]], list[tuple[re.Pattern[str], str]]]:
        theirs = [(_pattern(ours), _template(theirs)) for ours, theirs in self.pairs]
        ours = [(_pattern(theirs), _template(ours)) for ours, theirs in self.pairs]
        return theirs, ours

    def theirs(self, name: str) -> str | None:
        """Return their name of our ``name``, None if they have no such tensor."""
        return _renamed(name, self._rules[0])

    def ours(self, name: str) -> str | None:
        """Return our name of their ``name``, None if we have no such tensor."""
        return _renamed(name, self._rules[1])


def _fairseq(conv_norm: str) -> Naming:
    norms = {"group_norm": [(f"{_CONV}layer_norm.", "feature_extractor.conv_layers.#.2.")]}
    norms["layer_norm"] = [(f"{_CONV}layer_norm.", "feature_extractor.conv_layers.#.2.1.")]
    return Naming(
        (
            (f"{_CONV}conv.", "feature_extractor.conv_layers.#.0."),
            *norms[conv_norm],
            ("wav2vec2.encoder.feature_projection.layer_norm.", "layer_norm."),
            (PROJECTION, "post_extract_proj."),
            (f"{_POSITIONS}parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
            (f"{_POSITIONS}parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
            (_POSITIONS, "encoder.pos_conv.0."),
            (f"{_LAYER}attention.", "encoder.layers.#.self_attn."),
            (f"{_LAYER}layer_norm.", "encoder.layers.#.self_attn_layer_norm."),
            (f"{_LAYER}feed_forward.intermediate_dense.", "encoder.layers.#.fc1."),
            (f"{_LAYER}feed_forward.output_dense.", "encoder.layers.#.fc2."),
            (f"{_LAYER}final_layer_norm.", "encoder.layers.#.final_layer_norm."),
            (f"{_TRANSFORMER}layer_norm.", "encoder.layer_norm."),
            ("mask_generator.mask_embedding", "mask_emb"),
            (LABELS, "label_embs_concat"),
            ("logit_generator.final_proj.", "final_proj."),
        )
    )


FAIRSEQ = {conv_norm: _fairseq(conv_norm) for conv_norm in ("group_norm", "layer_norm")}
"""By ``conv_norm``: the two kinds keep the norms of the convolutions in other places."""

# the norm of the positions under torch's old names: transformers up to 4.40 leaves a tensor that
# comes under the new ones at random, without a word, and later versions read both
HUGGINGFACE = Naming(
    (
        ("wav2vec2.feature_extractor.", "feature_extractor."),
        ("wav2vec2.encoder.feature_projection.", "feature_projection."),
        (f"{_POSITIONS}parametrizations.weight.original0", "encoder.pos_conv_embed.conv.weight_g"),
        (f"{_POSITIONS}parametrizations.weight.original1", "encoder.pos_conv_embed.conv.weight_v"),
        (_TRANSFORMER, "encoder."),
        ("mask_generator.mask_embedding", "masked_spec_embed"),
    )
)

TORCHAUDIO_ENCODER = Naming(
    (("wav2vec2.feature_extractor.", "feature_extractor."), ("wav2vec2.encoder.", "encoder."))
)
"""``torchaudio.models.Wav2Vec2Model`` alone; a ``HuBERTPretrainModel`` has our names."""


def exported(
    state: Mapping[str, Tensor], naming: Naming, *, without: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return ``state`` under their names, the same tensors; names that start with one of
    ``without`` stay out.

    Raises:
        CheckpointError: ``state`` has a tensor that is no part of HuBERT.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(without):
            continue
        theirs = naming.theirs(name)
        if theirs is None:
            raise CheckpointError(f"the weights hold `{name}`, which HuBERT does not have")
        tensors[theirs] = tensor
    return tensors


def _pattern(prefix: str) -> re.Pattern[str]:
    end = "" if prefix.endswith(".") else "$"
    return re.compile(re.escape(prefix).replace(r"\#", r"(\d+)") + end)


def _template(prefix: str) -> str:
    return prefix.replace("#", r"\1")


def _renamed(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        match = pattern.match(name)
        if match:
            return match.expand(template) + name[match.end() :]
    return None
