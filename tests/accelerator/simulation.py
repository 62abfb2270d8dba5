"""``fedhubert train experiment=demo_fedavg`` on Ray: one worker and two at half a card each; how busy the card is; and what the same bits take.

Two runs of the same steps in processes of their own, as torch is and with its deterministic algorithms, say what costs what; then the whole
federation does, with one worker and with two, which is to give the same model.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fedhubert.models.hubert import build_hubert
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.stepping import Trainer
from tests.accelerator.audio import manifest_of
from tests.accelerator.context import Context, Skipped, check, need
from tests.accelerator.measure import Busy, synchronize
from tests.accelerator.runner import ROOT
from tests.accelerator.settings import crops, recipe
from tests.benchmarks.step import LONG_ROWS, LONG_SECONDS

DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What cuBLAS wants in the environment, before it starts."""
_STEPS = 6


def run(context: Context) -> None:
    """Measure."""
    for precise in (False, True):
        about = "deterministic algorithms" if precise else "torch as it is"
        with context.part(f"the same steps twice, {about}"):
            _twice(context, precise, about)
    with context.part("federation"):
        context.want(20.0)
        need("ray")
        need("flwr")
        sizes = (2,) if context.quick else (1, 2) if context.left > 40.0 else (1,)
        digests = {workers: _federation(context, workers) for workers in sizes}
        if len(digests) == 2:
            context.figure(
                "federation: one worker and two give the same bits", len(set(digests.values())) == 1
            )


def _twice(context: Context, precise: bool, about: str) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from tests.accelerator.simulation import repeated; repeated(*sys.argv[1:])",
    ]
    command += [str(context.device), str(int(context.quick)), str(int(precise))]
    environment = {**os.environ, **(DETERMINISTIC if precise else {})}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=max(5.0, min(40.0, context.left - 2.0)),
    )
    print(done.stderr, flush=True)
    check(done.returncode == 0, f"{about}: ended with {done.returncode}: {done.stderr[-400:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    context.figure(f"the same steps twice, {about}: the same bits", found["same"])
    context.figure(f"the same steps twice, {about}: a step", found["seconds"], "s")


def repeated(device: str, quick: str, precise: str) -> None:
    """Take the same steps from the same weights twice; print whether the bits are equal, and seconds a step."""
    if int(precise):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
    context = Context("simulation", Path(), torch.device(device), None, bool(int(quick)), 60.0)
    config = recipe(context)
    batch, digests, taken = crops(context, config, LONG_ROWS, LONG_SECONDS), [], 0.0
    for _ in range(2):
        model = build_hubert(config.model, seed=0)
        trainer = Trainer(model, config.client, config.task, 0, 0, context.device, 0.0)
        trainer.step([batch], 1e-4)
        synchronize(context.device)
        started = time.monotonic()
        for _ in range(1 if context.quick else _STEPS):
            trainer.step([batch], 1e-4)
        synchronize(context.device)
        taken = (time.monotonic() - started) / (1 if context.quick else _STEPS)
        digests.append(
            hashlib.sha256(ParameterLayout.of(model).to_vector(model).numpy().tobytes()).hexdigest()
        )
    print(json.dumps({"same": digests[0] == digests[1], "seconds": taken}), flush=True)


def _federation(context: Context, workers: int) -> str:
    """Run the demo with that many workers, write its figures, and return a digest of the model."""
    name, out = (
        f"federation, {workers} worker{'s' if workers > 1 else ''}",
        context.folder / f"workers{workers}",
    )
    rounds, steps = (1, 1) if context.quick else (3, 30)
    overrides = [
        "experiment=demo_fedavg",
        f"data.manifest={manifest_of(context)}",
        "data.partition.kind=random",
        f"out={out}",
        f"client.state_dir={context.folder / 'state'}",
        f"federated.num_rounds={rounds}",
        f"client.local_steps={steps}",
        "client.validation_batches=1",
        f"client.device={'cuda' if context.cuda else 'cpu'}",
        f"simulation.num_workers={workers}",
        f"simulation.num_gpus={int(context.cuda)}",
        f"simulation.gpus_per_client={1.0 / workers if context.cuda else 0.0}",
    ]
    if context.quick:
        overrides += [
            "federated.num_clients=2",
            "targets.num_clusters=8",
            "targets.max_iterations=2",
            "model.num_layers=1",
        ]
    busy: Busy | None = None
    if context.cuda:
        with context.part(f"{name}: busy share"):
            busy = Busy(context.device)
    with busy.sampling() if busy else nullcontext():
        train(context, overrides)
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    played = [event for event in events if event["event"] == "round"]
    check(len(played) == rounds, f"{len(played)} rounds of {rounds}")
    last: Mapping[str, Any] = played[-1]
    context.figure(
        f"{name}: a round", sum(event["seconds"]["round"] for event in played) / rounds, "s"
    )
    heard = sum(client["train_audio_s"] for client in last["clients"])
    context.figure(f"{name}: audio", heard / last["seconds"]["round"], "s/s")
    context.figure(f"{name}: loss of the last round", float(last["train"]["loss"]), "nats")
    if busy is not None and not math.isnan(busy.share):
        context.figure(f"{name}: the card is busy, of the whole run's time", busy.share)
    checkpoint = torch.load(
        out / "checkpoints" / f"round_{rounds:03d}_checkpoint.pt",
        map_location="cpu",
        weights_only=True,
    )
    digest = hashlib.sha256()
    for key in sorted(checkpoint["model"]):
        digest.update(checkpoint["model"][key].numpy().tobytes())
    return digest.hexdigest()


def train(
    context: Context, overrides: list[str], limit_s: float | None = None, *, may_stop: bool = False
) -> None:
    """Run ``fedhubert train``; after ``limit_s`` it is asked to stop, which keeps its last round. Raises where it fails."""
    command = [sys.executable, "-m", "fedhubert.cli", "train", *overrides]
    print(" ".join(command), flush=True)
    limit = max(5.0, context.left - 3.0) if limit_s is None else limit_s
    log = context.folder / "train.log"
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                code = process.wait(max(5.0, min(25.0, context.left - 10.0)))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if may_stop:
                print(f"fedhubert train was asked to stop after {limit:.0f} s: {code}", flush=True)
                return
    if code != 0:
        tail = log.read_text(encoding="utf-8").splitlines()[-15:]
        print("\n".join(tail), flush=True)
        if any("needs" in line and "packages" in line for line in tail):
            raise Skipped(tail[-1])
    check(code == 0, f"fedhubert train ended with {code}")
