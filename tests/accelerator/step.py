"""A step of pretraining, HuBERT base in bf16: ours and the peers', as they are and compiled, on the recipe's 87.5 s and on 350 s."""

from collections.abc import Callable
from functools import partial

from fedhubert.config import Config
from fedhubert.data.batching import Batch
from fedhubert.training.stepping import Trainer
from tests.accelerator import environment
from tests.accelerator.context import Context, Skipped
from tests.accelerator.measure import peak_gb, seconds_each, waits
from tests.accelerator.peers import Step, minimal_hubert_step, torchaudio_step
from tests.accelerator.settings import backend, build, crops, recipe
from tests.benchmarks.step import LONG_ROWS, LONG_SECONDS, flops, noise

OURS = "ours, 87.5 s: audio"
"""The figure that other steps look up."""
_SIZES = ((1, "87.5 s"), (4, "350 s"))

Build = Callable[[Config, Batch, str | None], Step]


def run(context: Context) -> None:
    """Measure, what matters most first; what no time is left for is skipped."""
    config = recipe(context)
    rate, work = context.found("environment", environment.PRODUCT), _flops(context, config)

    def ours(config: Config, batch: Batch, compiled: str | None) -> Step:
        trainer = _trainer(context, config, compiled is not None)
        return lambda: _stepped(trainer, [batch], config, compiled)

    sides: dict[str, Build] = {
        "ours": ours,
        "torchaudio": torchaudio_step,
        "minimal-hubert": minimal_hubert_step,
    }
    for compiled in (None, backend(context)):
        for times, size in _SIZES[: 1 if compiled and context.quick else None]:
            for side, made in sides.items():
                name = f"{side}{' compiled' if compiled else ''}, {size}"
                with context.part(name):
                    context.want(25.0 if compiled else 8.0)
                    if compiled and context.quick and side != "ours":
                        raise Skipped(
                            "toy sizes: a peer's model takes a compiler minutes on the CPU"
                        )
                    batch = crops(context, config, times * LONG_ROWS, LONG_SECONDS)
                    _measure(
                        context,
                        name,
                        made(config, batch, compiled),
                        batch,
                        rate,
                        None if side != "ours" else work,
                    )
        if compiled is None:
            with context.part("waits"):
                trainer = _trainer(context, config, False)
                batch = crops(context, config, 1, 2.0)
                for count in (1, 4):
                    times_waited = waits(context, partial(trainer.step, [batch] * count, 1e-6))
                    context.figure(
                        f"ours: waits for the card in a step of {count} micro-batches", times_waited
                    )
    with context.part("large, 87.5 s"):
        context.want(20.0)
        large = recipe(context, "hubert_large")
        batch = crops(context, large, LONG_ROWS, LONG_SECONDS)
        _measure(
            context, "large, 87.5 s", ours(large, batch, None), batch, rate, _flops(context, large)
        )


def _trainer(context: Context, config: Config, compiled: bool) -> Trainer:
    model = build(context, config, compile_it=compiled)
    return Trainer(model, config.client, config.task, 0, 0, context.device, 0.0)


def _stepped(trainer: Trainer, batches: list[Batch], config: Config, compiled: str | None) -> None:
    trainer.step(batches, 1e-6)
    if compiled and not trainer.model.compiled:
        raise Skipped("torch.compile failed, as the log says, and training went on without")


def _flops(context: Context, config: Config) -> float:
    """Return a step's floating-point operations for a second of audio, in crops as long as those measured."""
    seconds = 0.8 if context.quick else LONG_SECONDS
    return flops(config, noise(config, 1, seconds)) / seconds


def _measure(
    context: Context, name: str, step: Step, batch: Batch, rate: float | None, work: float | None
) -> None:
    seconds = seconds_each(context, step)
    context.figure(f"{name}: audio", batch.audio_s / seconds, "s/s", step_s=round(seconds, 4))
    peak = peak_gb(context.device)
    if peak is not None:
        context.figure(f"{name}: peak memory", peak, "GB")
    if work is not None:
        achieved = work * batch.audio_s / seconds / 1e12
        share = {} if rate is None else {"share_of_product": round(achieved / rate, 4)}
        context.figure(f"{name}: products", achieved, "TFLOP/s", **share)
        if rate is not None:
            context.figure(f"{name}: share of the measured product rate", achieved / rate)
