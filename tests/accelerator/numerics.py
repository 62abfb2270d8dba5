"""One batch with a given mask and no dropout: loss and every gradient on the card, beside the CPU, torchaudio, lower precision and other ways.

Errors of gradients are relative to the gradient's norm, plus a ten-thousandth of that of all (a key's bias has none but rounding).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchaudio.models.wav2vec2 import components

from fedhubert.config import Config
from fedhubert.data.batching import Batch
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.training.stepping import _FIRST_LOSS_SCALE
from tests.accelerator.context import Context, check
from tests.accelerator.peers import autocast, torchaudio_loss, torchaudio_model
from tests.accelerator.settings import NO_DRAWS, build, full_precision, recipe
from tests.benchmarks.step import noise

LossAndGradients = tuple[float, Mapping[str, Tensor]]
"""A mean loss, and gradients by name on the CPU."""


def run(context: Context) -> None:
    """Compare; bounds are generous, the figures are what is to be looked at."""
    full_precision()
    config = recipe(context, precision="fp32", **NO_DRAWS)
    rows, seconds = (1, 0.8) if context.quick else (2, 3.0)
    batch = noise(config, rows, seconds).to(torch.device("cpu"))
    cpu = build(context, config).to("cpu")
    weights = {name: tensor.clone() for name, tensor in cpu.state_dict().items()}
    reference = ours(cpu, config, batch)
    context.figure("loss on the CPU, fp32", reference[0], "nats a masked frame")
    there = batch.to(context.device)
    card: LossAndGradients | None = None
    with context.part("card in fp32, beside the CPU"):
        card = ours(build(context, config), config, there)
        compare(context, "card in fp32, beside the CPU", card, reference, loss=1e-4, gradients=1e-2)
    with context.part("card in fp32 with TF32, beside the CPU"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        try:
            found = ours(build(context, config), config, there)
        finally:
            full_precision()
        compare(
            context,
            "card in fp32 with TF32, beside the CPU",
            found,
            reference,
            loss=1e-2,
            gradients=0.2,
        )
    base = card or reference
    with context.part("card in fp32, beside torchaudio on the card"):
        theirs = peer(config, weights, there)
        compare(
            context,
            "card in fp32, beside torchaudio on the card",
            base,
            theirs,
            loss=1e-4,
            gradients=1e-2,
        )
    for precision, bound in (("bf16", 0.2), ("fp16", 0.1)):
        with context.part(f"{precision} autocast, beside fp32"):
            lower = recipe(context, precision=precision, **NO_DRAWS)
            found = ours(build(context, lower), lower, there)
            compare(
                context,
                f"{precision} autocast, beside fp32",
                found,
                base,
                loss=0.02,
                gradients=bound,
            )
    with context.part("activation checkpointing, beside without"):
        model = build(context, config)
        model.set_activation_checkpointing(True)
        found = ours(model, config, there)
        compare(
            context,
            "activation checkpointing, beside without",
            found,
            base,
            loss=1e-5,
            gradients=1e-3,
        )
        same = all(torch.equal(found[1][name], base[1][name]) for name in base[1])
        context.figure("activation checkpointing: every gradient has the same bits", same)
    with context.part("compiled, beside as it is"):
        context.want(35.0)
        found = ours(build(context, config, compile_it=True), config, there)
        compare(context, "compiled, beside as it is", found, base, loss=1e-4, gradients=1e-2)


def ours(model: HubertModel, config: Config, batch: Batch) -> LossAndGradients:
    """Return the mean loss and its gradients, by the objective that training uses."""
    precision = config.client.precision
    scale = _FIRST_LOSS_SCALE if precision == "fp16" else 1.0
    with autocast(batch.waveforms_BN.device, precision):
        terms = masked_prediction(model, batch, config.task)
    (terms.loss_sum * scale).backward()
    return float(terms.loss_sum.detach()) / terms.frames, gradients(model, scale * terms.frames)


def peer(config: Config, weights: Mapping[str, Tensor], batch: Batch) -> LossAndGradients:
    """Return the same of torchaudio's model with our weights and our mask."""
    model = torchaudio_model(config, batch.waveforms_BN.device)
    model.load_state_dict(dict(weights))
    drawn = components._compute_mask_indices
    components._compute_mask_indices = lambda *args, **kwargs: batch.mask_BT
    try:
        total, frames = torchaudio_loss(model, batch, config.task.feature_penalty)
    finally:
        components._compute_mask_indices = drawn
    total.backward()
    return float(total.detach()) / frames, gradients(model, frames)


def gradients(model: torch.nn.Module, divisor: float) -> dict[str, Tensor]:
    return {
        name: parameter.grad.detach().cpu().double() / divisor
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def compare(
    context: Context,
    name: str,
    found: LossAndGradients,
    expected: LossAndGradients,
    *,
    loss: float,
    gradients: float,
) -> None:
    """Write how far two results are apart, and fail beyond the bounds (relative)."""
    check(
        found[1].keys() == expected[1].keys(),
        f"gradients of {found[1].keys() ^ expected[1].keys()} on one side only",
    )
    off = abs(found[0] - expected[0]) / abs(expected[0])
    everything = float(torch.stack([gradient.norm() for gradient in expected[1].values()]).norm())
    errors = {
        key: float((found[1][key] - gradient).norm()) / (float(gradient.norm()) + 1e-4 * everything)
        for key, gradient in expected[1].items()
    }
    worst = max(errors, key=lambda key: errors[key])
    difference = torch.stack(
        [(found[1][key] - gradient).norm() for key, gradient in expected[1].items()]
    ).norm()
    context.figure(f"{name}: loss, relative difference", off)
    context.figure(f"{name}: all gradients, relative difference", float(difference) / everything)
    context.figure(f"{name}: worst gradient, relative difference", errors[worst], worst)
    check(off <= loss, f"{name}: the loss is off by {off:.2g}, more than {loss:g}")
    check(
        float(difference) / everything <= gradients,
        f"{name}: gradients are off by {float(difference) / everything:.2g}, more than {gradients:g}",
    )
