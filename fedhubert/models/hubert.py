"""HuBERT for pretraining: torchaudio's encoder, a mask embedding and a masked-prediction head.

Shape suffixes: B batch, N samples at 16 kHz, T 50-Hz frames, D encoder width, M masked frames, C
classes.
"""

import ctypes
from collections.abc import Collection
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedhubert.config import ModelConfig
from fedhubert.models.compiled import AS_THEY_ARE, Parts, compiled_parts
from fedhubert.models.convolutions import extract, recomputed
from fedhubert.models.heads import LogitGenerator, MaskGenerator, at_least_float32
from fedhubert.models.masking import FramePlaces, pick
from fedhubert.models.reference import torchaudio_model

LARGE = 50_000_000
"""Parameters from which a step on the CPU returns memory halfway: that takes 2 % of HuBERT base's
time, but 16 % of a tiny model's."""


class HubertOutput(NamedTuple):
    """Result of :meth:`HubertModel.forward`.

    Attributes:
        logits_MC: Scores of the masked frames, in the mask's order; float32 also under autocast (a
            float64 model's: float64).
        conv_power: Mean square of the convolutional features, a scalar in the same precision (the
            feature penalty).
        frames: T.
        unmasked_logits_UC: Scores of the frames that the mask does not hide, if they were asked
            for.
        others: Masked and unmasked scores by the heads of further sets of labels.
    """

    logits_MC: Tensor
    conv_power: Tensor
    frames: int
    unmasked_logits_UC: Tensor | None = None
    others: tuple[tuple[Tensor, Tensor | None], ...] = ()


class HubertModel(nn.Module):
    """A HuBERT encoder with its head. ``state_dict`` keys are those of
    ``torchaudio.models.hubert_pretrain_model``, and ``label_heads.N.`` of the heads of further sets
    of labels.

    Build it with :func:`build_hubert`. A batch holds crops of equal length, so there is never an
    attention mask (with one, torch cannot use flash attention). Dropout and layer drop draw from
    torch's global generator: seed it around a training step.

    Attributes:
        momenta: By parameter, the momentum that clients share; empty where they do not. It travels
            with the parameters, and is not part of ``state_dict``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        reference = torchaudio_model(config)
        self.config = config
        self.wav2vec2: Any = reference.wav2vec2
        self.mask_generator = MaskGenerator(config.embed_dim)
        self.logit_generator = _head(config, config.num_classes)
        self.mask_generator.load_state_dict(reference.mask_generator.state_dict())
        self.logit_generator.load_state_dict(reference.logit_generator.state_dict())
        self.label_heads = nn.ModuleList()
        self.momenta: dict[str, Tensor] = {}
        self.activation_checkpointing = False
        self._compiled: Parts | None = None

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Keep only the waveforms and the transformer layers' inputs for the backward pass and
        recompute the rest: less memory, same gradients.

        The convolutions then see one utterance at a time, so that what they hold does not grow with
        the batch.
        """
        self.activation_checkpointing = enabled

    @property
    def compiled(self) -> bool:
        """Whether training steps run compiled parts."""
        return self._compiled is not None

    def set_compiled(self, enabled: bool) -> None:
        """Run training steps by ``torch.compile`` (see :mod:`fedhubert.models.compiled`).

        Results are the same within rounding, but dropout draws otherwise.

        Evaluation runs as it is. Nothing is compiled before the first step, which may then fail in
        whatever way the compiler does.
        """
        self._compiled = compiled_parts() if enabled else None

    @property
    def _parts(self) -> Parts:
        training = self.training and torch.is_grad_enabled()
        return self._compiled if self._compiled is not None and training else AS_THEY_ARE

    def forward(
        self,
        waveforms_BN: Tensor,
        mask_BT: Tensor | None = None,
        *,
        unmasked: bool = False,
        places: FramePlaces | None = None,
    ) -> HubertOutput:
        """Score the masked frames of equally long waveforms, and with ``unmasked`` the others too.

        Args:
            waveforms_BN: Audio at 16 kHz.
            mask_BT: Frames to hide and predict, T = :func:`num_frames` (N). None hides nothing and
                scores all B * T frames.
            places: The mask's, if they are known; else they are worked out, for which a GPU makes
                the host wait.

        Raises:
            ValueError: the mask's shape is not [B, T].
        """
        conv_BTD = self.convolve(waveforms_BN)
        x_BTD = self.project(conv_BTD)
        if mask_BT is None:
            mask_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
        else:
            x_BTD = self.apply_mask(x_BTD, mask_BT)
        x_BTD, _ = self.transform(x_BTD)
        return self.predict(x_BTD, places or FramePlaces.of(mask_BT), conv_BTD, unmasked=unmasked)

    def convolve(self, waveforms_BN: Tensor) -> Tensor:
        """Return the convolutions' features [B, T, channels]; ``feature_grad_mult`` scales the
        gradient that comes back to them."""
        extractor = self.wav2vec2.feature_extractor
        if self.activation_checkpointing and torch.is_grad_enabled():
            rows = [
                recomputed(extract, extractor, waveform_1N)
                for waveform_1N in torch.split(waveforms_BN, 1)
            ]
            conv_BTD: Any = torch.cat(rows)
        else:
            conv_BTD = self._parts.extract(extractor, waveforms_BN)
        if self.config.feature_grad_mult < 1.0 and conv_BTD.requires_grad:
            conv_BTD.register_hook(lambda gradient: gradient * self.config.feature_grad_mult)
        if (
            conv_BTD.requires_grad
            and conv_BTD.device.type == "cpu"
            and num_parameters(self) >= LARGE
        ):
            conv_BTD.register_hook(_return_freed_memory)
        return cast(Tensor, conv_BTD)

    def project(self, conv_BTD: Tensor) -> Tensor:
        """Return the transformer's input [B, T, D] for convolutional features."""
        return cast(Tensor, self.wav2vec2.encoder.feature_projection(conv_BTD))

    def apply_mask(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return ``x_BTD`` with its masked frames replaced; raises ``ValueError`` for a mask of
        another shape."""
        if mask_BT.shape != x_BTD.shape[:2]:
            raise ValueError(
                f"the mask is {tuple(mask_BT.shape)}, but the batch has {tuple(x_BTD.shape[:2])} "
                "rows and frames"
            )
        return cast(Tensor, self.mask_generator(x_BTD, mask_BT))

    def predict(
        self, x_BTD: Tensor, places: FramePlaces, conv_BTD: Tensor, *, unmasked: bool = False
    ) -> HubertOutput:
        """Score the masked frames of the transformer's output, and with ``unmasked`` the others
        too."""
        conv_power = at_least_float32(conv_BTD).pow(2).mean()
        unmasked_UD = pick(x_BTD, places.unmasked_U) if unmasked else None
        masked_MD = pick(x_BTD, places.masked_M)
        scores: list[tuple[Tensor, Tensor | None]] = []
        for head in (self.logit_generator, *self.label_heads):
            logits_UC = None if unmasked_UD is None else head(unmasked_UD)
            scores.append((head(masked_MD), logits_UC))
        (logits_MC, logits_UC), *others = scores
        return HubertOutput(logits_MC, conv_power, x_BTD.shape[1], logits_UC, tuple(others))

    def extract_features(self, waveforms_BN: Tensor, num_layers: int | None = None) -> list[Tensor]:
        """Return the output [B, T, D] of each transformer layer, or of the first ``num_layers``;
        nothing is masked.

        As in torchaudio, the layer norm that ends a ``layer_norm_first`` encoder is not applied to
        the last one.
        """
        return cast(list[Tensor], self.wav2vec2.extract_features(waveforms_BN, None, num_layers)[0])

    def transform(
        self, x_BTD: Tensor, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the transformer's output [B, T, D], and the outputs of the layers ``keep`` (from
        1), as :meth:`extract_features` has them; 0 is the first layer's input."""
        transformer = self.wav2vec2.encoder.transformer
        x_BTD = self._parts.embed(transformer, x_BTD)
        kept: dict[int, Tensor] = {0: x_BTD} if 0 in keep else {}
        for number, layer in enumerate(transformer.layers, start=1):
            dropped = (
                self.training
                and self.config.layer_drop > 0.0
                and torch.rand(()).item() < self.config.layer_drop
            )
            if not dropped:
                x_BTD = self._apply_layer(layer, x_BTD)
            if number in keep:
                kept[number] = x_BTD
        return cast(
            Tensor, transformer.layer_norm(x_BTD)
        ) if self.config.layer_norm_first else x_BTD, kept

    def _apply_layer(self, layer: nn.Module, x_BTD: Tensor) -> Tensor:
        run = self._parts.layer
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(run, layer, x_BTD, use_reentrant=False)
        return run(layer, x_BTD)


def _head(config: ModelConfig, num_classes: int) -> LogitGenerator:
    return LogitGenerator(config.embed_dim, num_classes, config.final_dim, config.logit_temperature)


def _return_freed_memory(gradient: Tensor) -> None:
    """Hand what the transformer's backward pass has freed back to the system, before the
    convolutions' begins.

    The freed pieces lie between gradients, and are too small for the convolutions' arrays: with
    HuBERT base they are a sixth of the peak.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def build_hubert(config: ModelConfig, seed: int) -> HubertModel:
    """Build a model whose weights depend on ``config`` and ``seed`` alone; the global random
    generators are left as they were.

    The weights are those that ``torchaudio.models.hubert_pretrain_model`` draws under that seed;
    with ``label_init: normal`` the label embeddings are drawn from a normal distribution instead.
    (The recipe's uniform [0, 1) draw puts them all into one orthant, where their cosines start near
    0.75: a long plateau at the unigram entropy, which small runs never leave.) Heads of further
    sets of labels are drawn last, so that all else is the same with and without them.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the GPUs, which are not forked here
        torch.default_generator.manual_seed(seed)
        model = HubertModel(config)
        if config.label_init == "normal":
            nn.init.normal_(model.logit_generator.label_embeddings)
        draw = nn.init.normal_ if config.label_init == "normal" else nn.init.uniform_
        for rows in config.other_classes:
            head = _head(config, rows)
            draw(head.label_embeddings)
            model.label_heads.append(head)
        return model


def num_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def encoder_parameters(model: HubertModel) -> int:
    """Return the number of parameters of the encoder alone, without the mask embedding and the
    head."""
    return num_parameters(model.wav2vec2)
