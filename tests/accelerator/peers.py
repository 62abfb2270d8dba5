"""Peers, each under its own recipe's loss and with its own step: torchaudio's HuBERT, minimal-hubert, s3prl's distiller.

Only their models are imported: minimal-hubert's needs its sister package spidr and huggingface-hub, and neither torchcodec, polars nor
fastabx; s3prl's distiller needs NumPy alone. All get torch's fused AdamW, which is ours too.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torchaudio.models import hubert_pretrain_model

from fedhubert.config import NUM_SPECIAL_ROWS, ClientConfig, Config
from fedhubert.data.batching import Batch
from fedhubert.models.reference import torchaudio_arguments
from tests.accelerator.context import need
from tests.benchmarks.distillation import distiller_settings

Step = Callable[[], object]
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> Any:
    """Return the context in which a model of that precision runs forward."""
    dtype = _AUTOCAST[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def fused_adamw(model: torch.nn.Module, client: ClientConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimiser."""
    return torch.optim.AdamW(
        model.parameters(), client.lr, client.betas, client.eps, client.weight_decay, fused=True
    )


def _step(
    model: Any, client: ClientConfig, loss_of: Callable[[], torch.Tensor], device: torch.device
) -> Step:
    optimizer = fused_adamw(model, client)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, client.precision):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), client.grad_clip_norm)
        optimizer.step()

    return step


def torchaudio_model(config: Config, device: torch.device) -> Any:
    """Return ``hubert_pretrain_base`` (or a model of its kind) without the unmasked frames' logits, whose weight in the recipe is 0."""
    share = config.model.feature_grad_mult
    arguments = {
        **torchaudio_arguments(config.model),
        "skip_nomask": True,
        "feature_grad_mult": None if share == 1.0 else share,
    }
    return hubert_pretrain_model(**arguments).to(device).train()


def torchaudio_loss(model: Any, batch: Batch, penalty: float) -> tuple[torch.Tensor, int]:
    """Return the sum that torchaudio's recipe takes over masked frames, and their number; it draws the masks itself."""
    assert batch.labels_BT is not None
    masked, _, power = model(batch.waveforms_BN, batch.labels_BT + NUM_SPECIAL_ROWS)
    first = torch.zeros(len(masked), dtype=torch.long, device=masked.device)
    return F.cross_entropy(masked.float(), first, reduction="sum") + penalty * power * len(
        masked
    ), len(masked)


def torchaudio_step(config: Config, batch: Batch, compiled: str | None) -> Step:
    """Return torchaudio's step; ``compiled`` names the backend of ``torch.compile``, if any."""
    device = batch.waveforms_BN.device
    model = torchaudio_model(config, device)
    if compiled:  # what depends on chance (masks, layer drop) breaks graphs: the parts are compiled, all layers as one
        wav2vec2 = model.wav2vec2
        for part in (
            wav2vec2.feature_extractor,
            *wav2vec2.encoder.transformer.layers,
            model.logit_generator,
        ):
            part.compile(backend=compiled)

    def loss() -> torch.Tensor:
        total, frames = torchaudio_loss(model, batch, config.task.feature_penalty)
        return total / frames

    return _step(model, config.client, loss, device)


def minimal_hubert_step(config: Config, batch: Batch, compiled: str | None) -> Step:
    """Return minimal-hubert's step as its ``train.py`` has it, on HuBERT base (with as many layers as ours); compiled as there (dynamic)."""
    package = need("minimal_hubert", "minimal-hubert")
    device, labels = batch.waveforms_BN.device, batch.labels_BT
    assert labels is not None
    model = package.HuBERTPretrain(config.model.num_classes)
    del model.encoder.layers[
        config.model.num_layers :
    ]  # base is its smallest: none for ours of base, all but a few at toy size
    model.to(device).train()
    model.encoder.layer_drop = 0.0  # off on all sides
    if compiled:
        model.compile(dynamic=True, backend=compiled)
    frames = int(batch.mask_BT.sum())

    def loss() -> torch.Tensor:
        total, _ = model(
            batch.waveforms_BN, labels + NUM_SPECIAL_ROWS, mask=batch.mask_BT, attention_mask=None
        )
        return total.sum() / frames

    return _step(model, config.client, loss, device)


def s3prl_step(
    config: Config,
    teacher: Any,
    layers: Sequence[int],
    next_batch: Callable[[], Batch],
    device: torch.device,
) -> Step:
    """Return s3prl's distillation step, the teacher run each time."""
    module = need("s3prl.upstream.distiller.model", "s3prl==0.4.18")
    model, client = config.model, config.client
    settings = distiller_settings(model, layers, teacher.config.embed_dim)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        student = module.DistillerModel(module.DistillerConfig(settings)).to(device).train()
    encoder = teacher.wav2vec2.to(device).eval()

    def loss() -> torch.Tensor:
        waveforms = next_batch().waveforms_BN
        with torch.no_grad():
            outputs = encoder.extract_features(waveforms)[0]
            taught = torch.stack([outputs[layer - 1] for layer in layers], dim=1)
        predicted = student(waveforms, torch.ones_like(waveforms))[2]
        cosine = F.cosine_similarity(predicted.float(), taught.float(), dim=-1)
        return F.l1_loss(predicted.float(), taught.float()) - F.logsigmoid(cosine).mean()

    return _step(student, client, loss, device)
