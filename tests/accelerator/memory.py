"""What happens when memory is short: a batch that does not fit is halved with the same gradient; two processes share the card."""

import json
import subprocess
import sys
import time
from typing import Any

import torch

from fedhubert.config import Config
from fedhubert.data.batching import Batch
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.objectives.objective import Terms
from fedhubert.training.stepping import Trainer
from tests.accelerator.context import Context, check, free_memory
from tests.accelerator.measure import peak_gb, synchronize
from tests.accelerator.runner import ROOT
from tests.accelerator.settings import NO_DRAWS, build, crops, recipe
from tests.benchmarks.step import LONG_ROWS, LONG_SECONDS


def run(context: Context) -> None:
    """Measure."""
    with context.part("a batch that does not fit"):
        _halved(context)
    with context.part("two processes share the card"):
        context.want(15.0)
        _shared(context)


def _halved(context: Context) -> None:
    config, name = recipe(context, **NO_DRAWS), "a batch that does not fit"
    batch = crops(context, config, LONG_ROWS, LONG_SECONDS)
    whole, peak, _ = _gradient(context, config, batch, None)
    # On the CPU memory does not run out: an objective says so. On a card the process gets less than the batch has taken.
    objective = None if context.cuda else _small_objective(config)
    if context.cuda and peak is not None:
        total = torch.cuda.get_device_properties(context.device).total_memory
        free_memory(context.device)
        torch.cuda.set_per_process_memory_fraction(0.7 * 1e9 * peak / total, context.device)
    try:
        pieces, tight, parts = _gradient(context, config, batch, objective)
    finally:
        if context.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, context.device)
    error = float((pieces - whole).norm() / whole.norm())
    context.figure(f"{name}: pieces that it is cut into", parts)
    context.figure(f"{name}: gradient, relative difference to the whole", error)
    if peak is not None and tight is not None:
        context.figure(f"{name}: peak memory, whole", peak, "GB")
        context.figure(f"{name}: peak memory, cut", tight, "GB")
    check(parts > 1, "the batch was not cut: it fitted after all")
    check(error < 0.05, f"gradients of pieces and whole are {error:.2g} apart")


def _small_objective(config: Config) -> Any:
    def objective(model: Any, batch: Batch) -> Terms:
        if len(batch.waveforms_BN) > 1:
            raise torch.OutOfMemoryError("as if the device were full")
        return masked_prediction(model, batch, config.task)

    return objective


def _gradient(
    context: Context, config: Config, batch: Batch, objective: Any
) -> tuple[torch.Tensor, float | None, int]:
    """Return the update of one plain SGD step [P], its peak memory, and the pieces it took."""
    plain = {"optimizer": "sgd", "weight_decay": 0.0, "grad_clip_norm": 0.0}
    model = build(context, config)
    trainer = Trainer(
        model,
        config.client.model_copy(update=plain),
        config.task,
        0,
        0,
        context.device,
        0.0,
        objective,
    )
    trainer.step([batch], 1e-6)
    gradient = torch.cat(
        [p.grad.detach().reshape(-1).cpu() for p in trainer.parameters if p.grad is not None]
    )
    return gradient, peak_gb(context.device), trainer.parts


def _shared(context: Context) -> None:
    """Time steps of one process, then of two at once with half of the card's memory each, as ``simulation.gpus_per_client=0.5`` has them."""
    rates = {}
    for count in (2,) if context.quick else (1, 2):
        command = [
            sys.executable,
            "-c",
            "import sys; from tests.accelerator.memory import worker; worker(*sys.argv[1:])",
        ]
        seconds = 1.0 if context.quick else 4.0
        command += [str(context.device), str(count), str(seconds), str(int(context.quick))]
        workers = [
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        said = [worker.communicate(timeout=max(5.0, context.left))[0] for worker in workers]
        check(
            all(worker.returncode == 0 for worker in workers),
            f"{count} processes: a worker has failed, see the log",
        )
        found = [json.loads(text.splitlines()[-1]) for text in said]
        rates[count] = sum(one["audio_s_per_s"] for one in found)
        context.figure(
            f"{count} process{'es' if count > 1 else ''} on the card: audio, together",
            rates[count],
            "s/s",
        )
        if found[0]["peak_gb"] is not None:
            context.figure(
                f"{count} process{'es' if count > 1 else ''} on the card: peak memory of each",
                max(one["peak_gb"] for one in found),
                "GB",
            )
    if len(rates) == 2:
        context.figure("two processes do, beside one", rates[2] / rates[1], "times as much")


def worker(device: str, count: str, seconds: str, quick: str) -> None:
    """Be one of ``count`` processes on a card: step for ``seconds``, and print a line of JSON."""
    from pathlib import Path

    context = Context("memory", Path(), torch.device(device), None, bool(int(quick)), 60.0)
    if context.cuda and int(count) > 1:
        torch.cuda.set_per_process_memory_fraction(1.0 / int(count), context.device)
    if not context.cuda:
        torch.set_num_threads(1)
    config = recipe(context)
    batch = crops(context, config, LONG_ROWS, LONG_SECONDS)
    trainer = Trainer(build(context, config), config.client, config.task, 0, 0, context.device, 0.0)
    trainer.step([batch], 1e-6)
    synchronize(context.device)
    started, steps = time.monotonic(), 0
    while steps == 0 or time.monotonic() - started < float(seconds):
        trainer.step([batch], 1e-6)
        steps += 1
    synchronize(context.device)
    taken = time.monotonic() - started
    print(
        json.dumps(
            {"audio_s_per_s": steps * batch.audio_s / taken, "peak_gb": peak_gb(context.device)}
        ),
        flush=True,
    )
