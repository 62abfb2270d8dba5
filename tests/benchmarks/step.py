"""What a step of pretraining costs: HuBERT base as sites train it, beside torchaudio's pretraining model under the loss of its recipe.

A step is forward, backward, clipping and AdamW, on one thread, in float32, on noise. torchaudio's recipe also scores the unmasked frames, whose
loss then has no weight, and passes lengths, which makes an attention mask; ``lean`` is torchaudio without both. Layer drop is off on all sides.
``python -m tests.benchmarks.step`` prints one JSON line per figure.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchaudio.models import hubert_pretrain_model
from torchaudio.models.wav2vec2.components import LogitGenerator as TorchaudioLogits

from fedhubert.compose import compose
from fedhubert.config import NUM_SPECIAL_ROWS, Config
from fedhubert.data.batching import Batch
from fedhubert.data.loading import mask_spec
from fedhubert.models.frames import num_frames
from fedhubert.models.heads import LogitGenerator
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.masking import span_mask
from fedhubert.models.reference import torchaudio_arguments
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.seeding import generator
from fedhubert.training.stepping import Trainer
from tests.benchmarks.figures import case_alone, figure, free_gb, in_turn, memory_mb, peak_mb, run

Step = Callable[[], object]

LEFT_GB = 8.0
"""Memory that the largest case leaves to others."""
WAYS = ("ours", "checkpointed", "recipe", "lean")
LONG_ROWS, LONG_SECONDS = 7, 12.5  # the recipe's 87.5 s per batch


def configuration(model: str = "hubert_base") -> Config:
    """Return the recipe's settings: 504 classes, and the model's dropouts."""
    return compose(
        [
            "experiment=research_standard_pretraining",
            f"model={model}",
            "model.layer_drop=0",
            "client.precision=fp32",
            "data.manifest=none",
        ]
    )


def noise(config: Config, rows: int, seconds: float) -> Batch:
    """Return a batch of equal crops."""
    random, samples = torch.Generator().manual_seed(0), round(seconds * 16000)
    frames = num_frames(samples)
    labels = torch.randint(
        config.model.num_classes - NUM_SPECIAL_ROWS, (rows, frames), generator=random
    )
    mask = span_mask(rows, frames, mask_spec(config.task), generator(0, "benchmark"))
    return Batch(
        0.1 * torch.randn(rows, samples, generator=random), labels, torch.from_numpy(mask), 0
    )


def build_ours(config: Config) -> HubertModel:
    model = build_hubert(config.model, seed=0)
    model.set_activation_checkpointing(config.client.activation_checkpointing)
    return model


def ours(model: HubertModel, config: Config, batch: Batch) -> Step:
    trainer = Trainer(model, config.client, config.task, 0, 0, torch.device("cpu"), 0.0)
    return lambda: trainer.step([batch], config.client.lr)


def build_peer(config: Config, lean: bool) -> Any:
    """Return torchaudio's ``hubert_pretrain_base``, or a smaller one of its kind."""
    arguments = {
        **torchaudio_arguments(config.model),
        "skip_nomask": lean,
        "feature_grad_mult": 0.1,
    }
    return hubert_pretrain_model(**arguments).train()


def peer(model: Any, config: Config, batch: Batch, lean: bool) -> Step:
    """torchaudio's recipe: its loss, AdamW with the recipe's settings, gradients of the mean over masked frames, clipped."""
    client = config.client
    optimizer = torch.optim.AdamW(
        model.parameters(), client.lr, client.betas, client.eps, client.weight_decay
    )
    lengths = None if lean else torch.full((len(batch.waveforms_BN),), batch.waveforms_BN.shape[1])

    def step() -> None:
        optimizer.zero_grad()
        masked, unmasked, power = model(batch.waveforms_BN, batch.labels_BT, lengths)
        loss = _first_is_right(masked) + config.task.feature_penalty * power * len(masked)
        if unmasked is not None:
            loss = loss + 0.0 * _first_is_right(unmasked)
        (loss / len(masked)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), client.grad_clip_norm)
        optimizer.step()

    return step


def _first_is_right(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")


def logits(way: str, config: Config, batch: Batch) -> Step:
    """The masked frames' logits and their loss alone, forward and backward."""
    model, mask_BT, labels_BT = config.model, batch.mask_BT, batch.labels_BT
    assert labels_BT is not None
    random = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(*mask_BT.shape, model.embed_dim, generator=random).requires_grad_()
    if way == "ours":
        head: Any = LogitGenerator(
            model.embed_dim, model.num_classes, model.final_dim, model.logit_temperature
        )
        torch.nn.init.uniform_(head.label_embeddings)
        return lambda: F.cross_entropy(
            head(x_BTD[mask_BT]), labels_BT[mask_BT], reduction="sum"
        ).backward()
    head = TorchaudioLogits(
        model.embed_dim, model.num_classes, model.final_dim, skip_masked=False, skip_nomask=True
    )
    return lambda: _first_is_right(head(x_BTD, labels_BT, mask_BT, ~mask_BT)[0]).backward()


def case(what: str, way: str, model: str, rows: str, seconds: str) -> dict[str, float]:
    """Return the peak memory, above the model's, of a few steps or of the logits alone (``what``)."""
    config = configuration(model)
    batch = noise(config, int(rows), float(seconds))
    if what == "logits":
        step, before = logits(way, config, batch), memory_mb()
    elif way in ("ours", "checkpointed"):
        checkpointing = config.client.model_copy(
            update={"activation_checkpointing": way == "checkpointed"}
        )
        config = config.model_copy(update={"client": checkpointing})
        built = build_ours(config)
        before = memory_mb()
        step = ours(built, config, batch)
    else:
        theirs = build_peer(config, way == "lean")
        before = memory_mb()
        step = peer(theirs, config, batch, way == "lean")
    for _ in range(1 if what == "long" else 2):  # the second has AdamW's moments beside it
        step()
    return {"mb": peak_mb() - before}


def flops(config: Config, batch: Batch) -> float:
    """Return the floating-point operations of a step's products: three times the forward pass's, less the waveform's gradient."""
    model = build_ours(config)
    in_place = {
        torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]
    }  # which torch does not count
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.no_grad():
        masked_prediction(model, batch, config.task)
    channels, kernel, stride = config.model.conv_layers[0]
    first = (
        2
        * len(batch.waveforms_BN)
        * channels
        * kernel
        * ((batch.waveforms_BN.shape[1] - kernel) // stride + 1)
    )
    return 3 * counter.get_total_flops() - first


def machine(size: int) -> tuple[Step, float]:
    """Return a large matrix product, and its floating-point operations."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    product = torch.empty(size, size)
    return lambda: torch.mm(left, right, out=product), 2.0 * size**3


def compare_time(model: str, rows: int, seconds: float, repeats: int, size: int = 2048) -> None:
    """Print a step's CPU seconds beside torchaudio's, and beside what a matrix product of ``size`` says the machine can do."""
    config, about = configuration(model), f"{model}, {rows} x {seconds:g} s"
    batch = noise(config, rows, seconds)
    product, operations = machine(size)
    took = in_turn(
        {
            "ours": ours(build_ours(config), config, batch),
            "recipe": peer(build_peer(config, lean=False), config, batch, lean=False),
            "lean": peer(build_peer(config, lean=True), config, batch, lean=True),
            "product": product,
        },
        repeats,
    )
    figure(f"step: CPU, {about}, beside torchaudio's recipe", took["ours"], took["recipe"], "s")
    figure(
        f"step: CPU, {about}, beside torchaudio without unmasked frames and lengths",
        took["ours"],
        took["lean"],
        "s",
    )
    rate, needed = operations / took["product"], flops(config, batch)
    figure(
        f"step: CPU, {about}, beside its products alone at the machine's rate",
        took["ours"],
        needed / rate,
        "s",
        gflop=round(needed / 1e9),
        gflop_per_s=round(rate / 1e9),
    )


def compare_memory(model: str, rows: int, seconds: float) -> None:
    """Print a step's peak memory beside torchaudio's: activations, gradients and AdamW's moments."""
    about = f"{model}, {rows} x {seconds:g} s"
    peak = {way: case_alone(__spec__.name, "step", way, model, rows, seconds)["mb"] for way in WAYS}
    figure(
        f"step: memory above the model, {about}, beside torchaudio's recipe",
        peak["ours"],
        peak["recipe"],
        "MB",
    )
    figure(
        "step: the same, beside torchaudio without unmasked frames and lengths",
        peak["ours"],
        peak["lean"],
        "MB",
    )
    figure("step: the same, activation checkpointing", peak["checkpointed"], peak["recipe"], "MB")


def compare_long(model: str, rows: int, seconds: float) -> None:
    """Print the memory that the recipe's whole batch takes: all of ours, beside torchaudio's logits of the masked frames alone."""
    about = f"{model}, {rows} x {seconds:g} s"
    sides = [
        case_alone(__spec__.name, "logits", way, model, rows, seconds)["mb"]
        for way in ("ours", "lean")
    ]
    figure(f"logits of the masked frames: memory, {about}", *sides, "MB")
    for way, needed_gb in (("checkpointed", 4.0), ("ours", 14.0)):
        if free_gb() < needed_gb + LEFT_GB:
            print(
                f"skipped: {about}, {way}: {free_gb():.0f} GB are free, {needed_gb + LEFT_GB:g} wanted",
                flush=True,
            )
            continue
        peak = case_alone(__spec__.name, "long", way, model, rows, seconds)["mb"]
        figure(
            f"step: memory above the model, {about}, {way}, and torchaudio's logits alone",
            peak,
            sides[1],
            "MB",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hubert_base")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)

    def compare(given: argparse.Namespace) -> None:
        compare_long(
            given.model, LONG_ROWS, LONG_SECONDS
        )  # before this process holds models of its own
        compare_memory(given.model, given.rows, given.seconds)
        compare_time(given.model, given.rows, given.seconds, given.repeats)

    run(parser, case, compare)


if __name__ == "__main__":
    main()
