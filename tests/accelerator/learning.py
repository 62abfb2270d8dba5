"""A small but real HuBERT pretrained by ten clients in the minutes that are left (``experiment=accelerator_small``), then probes beside MFCC.

The rounds are as many as the measured rate of training allows, so that the learning rate comes to its end; a run that is late is asked to stop.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedhubert.compose import compose
from fedhubert.data.manifest import Manifest
from fedhubert.evaluation.annotations import Labels
from tests.accelerator.audio import manifest_of
from tests.accelerator.context import Context, Skipped, check, need
from tests.accelerator.runner import ROOT
from tests.accelerator.simulation import train

PROBES_S = 45.0
"""Kept for the probes."""
_AROUND_S = 45.0
"""What Ray's start, clustering, labelling and the final scores take."""
_BETWEEN_S = 1.5
"""What a round takes beside its steps."""
_MEASURE_S = 6.0
_PROBED = 800
"""Utterances that are probed, at most."""
_TOY = (
    "model=hubert_tiny",
    "model.pos_conv_groups=4",
    "client.precision=fp32",
    "data.max_seconds=3",
    "data.batch_seconds=6",
    "data.num_workers=1",
    "targets.num_clusters=8",
    "targets.max_iterations=2",
    "federated.num_clients=2",
    "federated.client_fraction=1",
    "client.local_steps=1",
)


def run(context: Context) -> None:
    """Train, then probe."""
    need("ray")
    need("flwr")
    if context.corpus is None and not context.quick:
        raise Skipped(
            "no corpus: give --corpus MANIFEST (tests/accelerator/pack.py makes one that travels)"
        )
    manifest, out = manifest_of(context), context.folder / "run"
    overrides = [
        "experiment=accelerator_small",
        f"data.manifest={manifest}",
        f"out={out}",
        f"client.state_dir={context.folder / 'state'}",
        f"client.device={'cuda' if context.cuda else 'cpu'}",
        f"simulation.num_gpus={int(context.cuda)}",
        f"simulation.gpus_per_client={0.5 if context.cuda else 0.0}",
    ]
    overrides += _TOY if context.quick else ()
    rounds = 2 if context.quick else _rounds(context, overrides)
    overrides += [f"federated.num_rounds={rounds}", f"checkpoint.every={max(1, rounds // 4)}"]
    train(
        context,
        overrides,
        max(20.0, context.left - (10.0 if context.quick else PROBES_S)),
        may_stop=not context.quick,
    )
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    played = [event for event in events if event["event"] == "round"]
    check(bool(played), "no round was finished")
    context.figure("rounds", len(played), f"of {rounds}")
    context.figure(
        "audio heard",
        sum(one["train_audio_s"] for event in played for one in event["clients"]) / 3600,
        "h",
    )
    for name, event in (("first", played[0]), ("last", played[-1])):
        context.figure(f"validation loss, {name} round", float(event["validation"]["loss"]), "nats")
        context.figure(
            f"masked accuracy, {name} round", float(event["validation"]["masked_accuracy"])
        )
    context.figure(
        "a round, in the middle", float(played[len(played) // 2]["seconds"]["round"]), "s"
    )
    with context.part("probes"):
        context.want(8.0)
        _probes(context, manifest, out)


def _rounds(context: Context, overrides: list[str]) -> int:
    """Return how many rounds fit into what is left, by this device's rate for the model's own steps on noise."""
    from fedhubert.planning.throughput import measure_speed

    config = compose(overrides)
    speed = measure_speed(config, None, _MEASURE_S)
    context.figure("measured rate of training", speed.trained, "s/s")
    a_round = (
        config.federated.clients_per_round
        * config.client.local_steps
        * config.data.batch_seconds
        / speed.trained
    )
    budget = context.left - PROBES_S - _AROUND_S
    return max(4, min(400, int(budget / (a_round + _BETWEEN_S))))


def _probes(context: Context, manifest: Path, out: Path) -> None:
    """Write what linear probes find in the trained layers, in an untrained model and in MFCC."""
    need("sklearn", "scikit-learn")
    labels = manifest.parent / "labels.csv"
    named = ["--labels", str(labels)] if labels.is_file() else ["--probe", "speaker"]
    results, chosen = context.folder / "probes.json", context.folder / "probes.csv"
    whole = Manifest.read(manifest)
    tasks = (
        Labels.read(labels).tasks.values() if labels.is_file() else [dict.fromkeys(whole.paths, "")]
    )
    # Of every task its share: thinned together, a small one could keep a single label.
    most, rows = 20 if context.quick else _PROBED, set[int]()
    for task in tasks:
        labelled = [row for row, path in enumerate(whole.paths) if path in task]
        rows.update(labelled[:: -(-len(labelled) // most) or 1])
    few = whole.select(sorted(rows))
    few.write(chosen)
    command = [
        sys.executable,
        "-m",
        "fedhubert.cli",
        "evaluate",
        "--checkpoint",
        str(out),
        "--manifest",
        str(chosen),
        *named,
    ]
    command += [
        "--root",
        str(whole.root),
        "--clusters",
        "0",
        "--cache-gb",
        "0",
        "--device",
        str(context.device),
        "--out",
        str(results),
    ]
    command += ["--folds", "2"] if context.quick else ["--layers", "0,3,6"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=max(5.0, context.left - 2.0)
    )
    print(done.stderr[-2000:], done.stdout[-4000:], flush=True)
    check(done.returncode == 0, f"fedhubert evaluate ended with {done.returncode}")
    found: dict[str, Any] = json.loads(results.read_text())
    for task, probe in found["probes"].items():
        best: dict[str, dict[str, Any]] = {}
        for row in probe["rows"]:
            if row["encoder"] not in best or row["accuracy"] > best[row["encoder"]]["accuracy"]:
                best[row["encoder"]] = row
        for encoder, row in best.items():
            more = {"layer": row["layer"], "majority": row["majority"], "utterances": row["items"]}
            context.figure(
                f"probe of {task}: {encoder}, best layer",
                float(row["accuracy"]),
                "accuracy",
                **more,
            )
