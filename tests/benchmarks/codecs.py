"""What lossy codecs cost and save: int8 updates with a bf16 broadcast beside float32, on the speech that FEDHUBERT_CORPUS names.

``python -m tests.benchmarks.codecs --rounds 20 --seeds 0 1 2`` runs both for each seed and prints two JSON lines per seed;
``--codecs ring32 ring24 ring16`` the same for others. ``--way muon`` takes FedMuon over single steps in place of FedAvg over twenty of AdamW: it
leaves the plateau in minutes (``--rounds 250``), so that a codec that harmed learning would be seen.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedhubert.federation.updates.ring import RING_BITS
from tests.benchmarks.figures import figure

LOCAL = [  # twenty steps between two exchanges: an update is worth its bytes
    *(
        "federated.strategy=FedAvg",
        "federated.bias_correction=none",
        "federated.server_schedule=constant",
    ),
    *(
        "federated.server_warmup_fraction=0",
        "client.schedule=linear",
        "client.warmup_fraction=0.08",
    ),
    *("client.optimizer=adamw", "client.lr=1e-3", "client.weight_decay=0.01"),
    *("client.local_steps=20", "client.validation_batches=10", "task.unmasked_weight=0"),
    *("client.validation_every=1", "client.grad_clip_norm=10", "federated.client_fraction=0.5"),
    *("federated.sampling=random", "targets.sets=[]", "task.mask_probability_start=null"),
    "model.conv_layers=[[32,10,5],[32,3,2],[32,3,2],[32,3,2],[32,3,2],[32,2,2],[32,2,2]]",
]
MUON = [
    *("targets.sets=[]", "client.validation_batches=10", "client.validation_every=10"),
    "model.conv_layers=[[32,10,5],[32,3,2],[32,3,2],[32,3,2],[32,3,2],[32,2,2],[32,2,2]]",
]
WAYS = {"local": LOCAL, "muon": MUON}
RING_CLIP = {"local": 0.02, "muon": 100.0}
"""Of an entry of an update: twenty steps of AdamW at 1e-3, and one of SGD at 1000."""
LOSSY = {
    "int8": ["federated.update_codec=int8", "federated.broadcast_codec=bf16"],
    **{codec: [f"federated.update_codec={codec}"] for codec in RING_BITS},
}


def train(out: Path, *overrides: str, way: str = "local") -> list[dict[str, Any]]:
    """Run one training in a process of its own and return its events; a finished one is not run again."""
    command = [
        sys.executable,
        "-m",
        "fedhubert.cli",
        "train",
        "experiment=speech_mini",
        f"out={out}",
        "resume=auto",
        *WAYS[way],
        *overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}"
        )
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def figures(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return held-out loss before and after, and the bytes of all rounds."""
    rounds = [event for event in events if event["event"] == "round"]
    (final,) = [event for event in events if event["event"] == "final"]
    sent = sum(event["bytes_up"] + event["bytes_down"] for event in rounds)
    return {
        "first_loss": rounds[0]["validation"]["loss"],
        "loss": final["validation"]["loss"],
        "bytes": sent,
    }


def compare(
    codec: str, seeds: list[int], out: Path, settings: list[str], way: str = "local"
) -> None:
    """Print the bytes and the held-out loss of each seed."""
    for seed in seeds:
        same = [f"seed={seed}", *settings]
        ring = [f"federated.ring_clip={RING_CLIP[way]:g}"] if codec in RING_BITS else []
        exact = figures(train(out / f"fp32-{seed}", *same, way=way))
        lossy = figures(train(out / f"{codec}-{seed}", *same, *LOSSY[codec], *ring, way=way))
        how = "int8 up, bf16 down" if codec == "int8" else codec
        name = f"{how} beside float32, {way}, {' '.join(settings)}, seed {seed}"
        figure(f"{name}: bytes", lossy["bytes"] / 1e6, exact["bytes"] / 1e6, "MB")
        fell_by, differs_by = (
            exact["first_loss"] - exact["loss"],
            abs(lossy["loss"] / exact["loss"] - 1.0),
        )
        figure(
            f"{name}: held-out loss",
            lossy["loss"],
            exact["loss"],
            "nats",
            peer_fell_by=round(fell_by, 3),
            differs_by=round(differs_by, 5),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--codecs", nargs="+", choices=sorted(LOSSY), default=["int8"])
    parser.add_argument("--way", choices=sorted(WAYS), default="local")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="codecs-"))
    for codec in arguments.codecs:
        rounds = [f"federated.num_rounds={arguments.rounds}"]
        compare(codec, arguments.seeds, out, rounds, arguments.way)


if __name__ == "__main__":
    main()
