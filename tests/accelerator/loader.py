"""Seconds of audio a second that loader threads bring to the device, from pinned memory and ahead, with nothing computed; and what starves whom."""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from fedhubert.config import DataConfig
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.training.upload import uploaded
from tests.accelerator import step
from tests.accelerator.audio import manifest_of
from tests.accelerator.context import Context
from tests.accelerator.measure import synchronize
from tests.accelerator.settings import recipe


def run(context: Context) -> None:
    """Measure 1, 2, 4 and 8 threads; with 4 also copies that the consumer makes itself, from memory that is not pinned."""
    manifest = Manifest.read(manifest_of(context))
    context.figure(
        "corpus", float(manifest.lengths().sum() / 16000 / 60), "min of audio", files=len(manifest)
    )
    rates: dict[int, float] = {}
    for threads in (1, 2) if context.quick else (1, 2, 4, 8):
        with context.part(f"{threads} threads"):
            context.want(3.0)
            rates[threads] = _rate(context, manifest, threads, ahead=True)
            context.figure(f"{threads} threads: audio", rates[threads], "s/s")
    with context.part("copied by the consumer"):
        context.want(3.0)
        threads = max(rates, default=1) if context.quick else 4
        rate = _rate(context, manifest, threads, ahead=False)
        context.figure(
            f"{threads} threads, copied by the consumer from pageable memory: audio", rate, "s/s"
        )
    trained = context.found("step", step.OURS)
    if trained is not None and rates:
        best = max(rates, key=lambda threads: rates[threads])
        context.figure(
            f"{best} threads bring audio, beside what a step of {step.OURS} takes",
            rates[best] / trained,
            "times as much",
        )
        enough = [threads for threads in sorted(rates) if rates[threads] >= trained]
        context.figure(
            "threads that keep one card busy", enough[0] if enough else "more than were tried"
        )


def _rate(context: Context, manifest: Manifest, threads: int, *, ahead: bool) -> float:
    data = DataConfig(
        min_seconds=0.5,
        batch_seconds=15.625 if context.quick else 87.5,
        num_workers=threads,
        prefetch_batches=2 * threads,
    )
    plan = BatchPlan(manifest.lengths(), np.arange(len(manifest)), data, 0, 0)
    labels = LabelSource(
        lambda row: np.zeros(int(manifest.lengths()[row]) // 160 + 2, np.int64), 100
    )
    positions = range(10**6)
    batches = load_batches(manifest, plan, positions, labels, mask_spec(recipe(context).task), data)
    arriving: Iterator[Batch] = (
        uploaded(batches, context.device)
        if ahead
        else (batch.to(context.device) for batch in batches)
    )
    try:
        heard = sum(batch.audio_s for batch in islice(arriving, threads))  # threads have begun
        synchronize(context.device)
        started, heard = time.monotonic(), 0.0
        for batch in arriving:
            heard += batch.audio_s
            if time.monotonic() - started > (0.2 if context.quick else 2.5):
                break
        synchronize(context.device)
        return heard / (time.monotonic() - started)
    finally:
        for stream in (arriving, batches):
            close = getattr(stream, "close", None)
            if close is not None:
                close()
