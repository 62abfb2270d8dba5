"""How long before anything happens: ``fedhubert --help`` and ``import fedhubert`` beside importing torch, ``fedhubert train`` to its first step.

The first two in CPU seconds (one thread: on an idle core, those of the wall), the last in seconds of the wall.
``python -m tests.benchmarks.startup`` prints one JSON line per figure.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedhubert.data.manifest import Manifest
from tests.benchmarks.data import corpus
from tests.benchmarks.figures import figure, run

HELP = [sys.executable, "-m", "fedhubert.cli", "--help"]
COMMANDS = {
    "fedhubert --help": HELP,
    "import fedhubert": [sys.executable, "-c", "import fedhubert"],
    "import torch": [sys.executable, "-c", "import torch"],
}
SAMPLE = [
    "experiment=demo_fedavg",
    "data.partition.kind=random",
    "data.min_seconds=0.5",
    "targets.num_clusters=10",
    "federated.num_rounds=1",
    "client.local_steps=1",
    "client.validation_batches=1",
]


def imports_torch() -> bool:
    """Return whether ``fedhubert --help`` imports torch."""
    said = subprocess.run(
        [HELP[0], "-X", "importtime", *HELP[1:]], check=True, capture_output=True, text=True
    ).stderr
    return any(line.rsplit("|", 1)[-1].strip() == "torch" for line in said.splitlines())


def compare_commands(repeats: int) -> None:
    """Print what the command and the package take before they do anything."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            before = _children_cpu_s()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(_children_cpu_s() - before)
    *ours, torch = (statistics.median(taken) for taken in times.values())
    for name, took in zip(COMMANDS, ours, strict=False):
        figure(f"start: CPU, {name}, beside import torch", took, torch, "s")


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_round(manifest: Manifest, folder: Path, *overrides: str) -> float:
    """Return the seconds from the command to the first event of a round: Ray, the sites, k-means, a step of each client."""
    manifest.write(folder / "manifest.csv")
    out, started = folder / "run", time.monotonic()
    command = [
        sys.executable,
        "-m",
        "fedhubert.cli",
        "train",
        *SAMPLE,
        f"data.manifest={folder / 'manifest.csv'}",
        f"out={out}",
    ]
    environment = {**os.environ, "FEDHUBERT_CACHE": str(folder / "cache")}
    log = folder / "said.log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*command, *overrides], stdout=said, stderr=said, env=environment
        ) as process,
    ):
        while process.poll() is None and not _has_round(out / "metrics.jsonl"):
            time.sleep(0.02)
        took = time.monotonic() - started
        process.wait()
    if not _has_round(out / "metrics.jsonl"):
        raise SystemExit(
            f"{' '.join(command)} ended with {process.returncode} before its first round:\n{log.read_text()[-4000:]}"
        )
    return took


def _has_round(metrics: Path) -> bool:
    try:
        lines = metrics.read_text().splitlines()
    except FileNotFoundError:
        return False
    return any(json.loads(line)["event"] == "round" for line in lines if line.endswith("}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)

    def compare(given: argparse.Namespace) -> None:
        print(
            json.dumps({"name": "start: fedhubert --help imports torch", "ours": imports_torch()}),
            flush=True,
        )
        compare_commands(given.repeats)
        with tempfile.TemporaryDirectory() as folder:
            manifest = corpus(Path(folder), "wav", 16000, files=50, seconds=2.0)
            figure(
                "start: wall, fedhubert train to the end of its first step, 5 clients",
                first_round(manifest, Path(folder)),
                None,
                "s",
            )

    run(parser, lambda: None, compare)


if __name__ == "__main__":
    main()
