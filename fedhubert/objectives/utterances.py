"""What objectives on labels of whole utterances have in common: the encoder over utterances of
different lengths, and masks of its input.

Rows of one length go through the encoder together and others apart, without padding: zeros behind
an utterance change all of its frames where the first convolution has a group norm. So an
utterance's figures are those that it has alone, in training as in use.

Shape suffixes: B batch, b rows of one length, N samples, T 50-Hz frames, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedhubert.config import DataConfig, FineTuneTask, MaskedTask, ModelConfig
from fedhubert.data.annotated import Annotations, annotation_column
from fedhubert.data.batching import Utterance
from fedhubert.data.manifest import Manifest
from fedhubert.errors import TargetsError
from fedhubert.models.heads import at_least_float32
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.objectives.objective import LabelledBatch
from fedhubert.objectives.spec import ObjectiveSpec
from fedhubert.seeding import derive_seed


@dataclass(frozen=True)
class Heard:
    """Utterances of one length, heard.

    Attributes:
        utterances: What is to be said of each [b].
        layers: The first layer's input and each layer's output [b, T, D].
        last_bTD: The transformer's output: the last layer's, normalised where the model has a final
            norm.
        conv_power: Sum over the rows of the mean square of their convolutional features.
    """

    utterances: list[Utterance]
    layers: list[Tensor]
    last_bTD: Tensor
    conv_power: Tensor


@dataclass(frozen=True)
class UtteranceTerms:
    """Sums over utterances, or over their characters (see
    :class:`fedhubert.objectives.objective.Terms`); ``frames`` counts these."""

    loss_sum: Tensor
    frames: int
    sums: Mapping[str, Tensor | int]


class UtteranceSpec(ObjectiveSpec):
    """An objective on labels of whole utterances."""

    whole_utterances = True

    def __init__(self, task: MaskedTask) -> None:
        super().__init__(task)
        assert isinstance(task, FineTuneTask)
        self.tuning = task

    def said(self, value: str) -> Sequence[int]:
        """Return what a column says of an utterance, as numbers; empty for nothing that can be
        learned."""
        raise NotImplementedError

    def annotations(self, manifest: Manifest, data: DataConfig) -> Annotations:
        assert self.task.annotation is not None
        return Annotations([*map(self.said, annotation_column(manifest, *self.task.annotation))])

    def head(self, config: ModelConfig) -> nn.Module:
        """Return the head under its first weights, drawn from torch's generator."""
        raise NotImplementedError

    @property
    def head_name(self) -> str:
        """The head's name in the model."""
        return f"{self.task.name}_head"

    def build_model(self, config: ModelConfig, seed: int) -> HubertModel:
        model = build_hubert(config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, self.head_name))
            model.add_module(self.head_name, self.head(config))
        model.logit_generator.requires_grad_(False)
        if not self.task.hides_frames:
            model.mask_generator.requires_grad_(False)
        return model

    def penalty(self, heard: Heard, frames: int) -> Tensor:
        """Return the feature penalty of rows whose losses are divided by ``frames`` in all."""
        return self.task.feature_penalty * frames / len(heard.utterances) * heard.conv_power


def hear(model: HubertModel, batch: LabelledBatch, task: FineTuneTask) -> Iterator[Heard]:
    """Run the encoder over a batch of whole utterances, a length at a time, with masks in training.

    Raises:
        TargetsError: the batch is one of crops.
    """
    if batch.utterances is None:
        raise TargetsError("the batch has no labels of utterances", setting="task.name")
    every = range(model.config.num_layers + 1)
    lengths = [utterance.num_samples for utterance in batch.utterances]
    for num_samples in sorted(set(lengths)):
        rows = [row for row, length in enumerate(lengths) if length == num_samples]
        conv_bTD = model.convolve(batch.waveforms_BN[rows, :num_samples])
        x_bTD = model.project(conv_bTD)
        if model.training:
            x_bTD = _masked(model, x_bTD, batch.mask_BT[rows, : x_bTD.shape[1]], task)
        last_bTD, kept = model.transform(x_bTD, every)
        power = at_least_float32(conv_bTD).pow(2).mean(dim=(1, 2)).sum()
        said = [batch.utterances[row] for row in rows]
        yield Heard(said, [kept[layer] for layer in every], last_bTD, power)


def _masked(model: HubertModel, x_bTD: Tensor, mask_bT: Tensor, task: FineTuneTask) -> Tensor:
    if task.mask_probability > 0.0:
        x_bTD = model.apply_mask(x_bTD, mask_bT)
    if task.channel_mask_probability > 0.0:
        hidden_bD = channel_spans(
            len(x_bTD), x_bTD.shape[2], task.channel_mask_probability, task.channel_mask_length
        )
        x_bTD = x_bTD.masked_fill(hidden_bD[:, None].to(x_bTD.device), 0.0)
    return x_bTD


def channel_spans(rows: int, width: int, probability: float, length: int) -> Tensor:
    """Draw which of ``width`` channels are zeroed in each row, bool [rows, width]: spans that may
    overlap, at least one each, from torch's generator, which a step seeds by its position."""
    length = min(length, width)
    count = max(1, int(probability * width / length + torch.rand(()).item()))
    starts = torch.randint(width - length + 1, (rows, count))
    places = (starts[..., None] + torch.arange(length)).flatten(1)
    return torch.zeros(rows, width, dtype=torch.bool).scatter_(1, places, True)
