"""HuBERT base into students of 384x6 and 768x2: the teacher run in every step, its outputs read from the disk, and s3prl's distiller."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from fedhubert.config import Config
from fedhubert.data.batching import Batch
from fedhubert.disk_cache import DiskCache
from tests.accelerator.context import Context
from tests.accelerator.measure import peak_gb, seconds_each
from tests.accelerator.peers import Step, s3prl_step
from tests.benchmarks.distillation import LAYERS, configuration, ours
from tests.benchmarks.step import noise

_CROPS = 4
"""Batches that differ, over and over: the cache has them all after the first pass."""


def run(context: Context) -> None:
    """Measure both students, the one of s3prl's shape last."""
    names = (
        (("hubert_tiny", "student_tiny", (1, 2)),)
        if context.quick
        else (("hubert_base", "student_384x6", LAYERS), ("hubert_base", "student_768x2", LAYERS))
    )
    for teacher, student, layers in names:
        config, model = configuration(teacher, student, layers, freeze_conv=False)
        config = config.model_copy(
            update={"client": config.client.model_copy(update={"precision": "bf16"})}
        )
        for name, side in _sides(context, config, model, layers).items():
            about = f"{teacher} into {student}, {name}"
            with context.part(about):
                context.want(5.0)
                batches = _batches(context, config)
                step = side(batches)
                audio_s = next(batches).audio_s
                seconds = seconds_each(context, step, for_s=2.0, warm_up=_CROPS)
                context.figure(f"{about}: audio", audio_s / seconds, "s/s")
                peak = peak_gb(context.device)
                if peak is not None:
                    context.figure(f"{about}: peak memory", peak, "GB")


def _sides(
    context: Context, config: Config, model: Any, layers: tuple[int, ...]
) -> dict[str, Callable[[Iterator[Batch]], Step]]:
    cache = context.folder / f"cache-{config.model.name}"
    return {
        "teacher run": lambda batches: ours(config, model, batches, context.device, None),
        "teacher cached": lambda batches: ours(
            config, model, batches, context.device, DiskCache(cache, 10**10)
        ),
        "s3prl": lambda batches: s3prl_step(
            config, model, layers, lambda: next(batches), context.device
        ),
    }


def _batches(context: Context, config: Config) -> Iterator[Batch]:
    batch = noise(config, 2, 0.8) if context.quick else noise(config, 8, 10.0)
    kept = [
        replace(
            batch, waveforms_BN=batch.waveforms_BN + 1e-3 * number, labels_BT=None, position=number
        ).to(context.device)
        for number in range(_CROPS)
    ]
    if context.cuda:
        torch.cuda.synchronize(context.device)
    return itertools.cycle(kept)
