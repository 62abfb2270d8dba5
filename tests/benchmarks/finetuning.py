"""What a pretrained encoder is worth to fine-tuning: digits of a speaker that nobody has trained on, from several beginnings, trained by the
federation, centrally, and by each client alone.

``python -m tests.benchmarks.finetuning keywords --begin random federated=runs/mini student=runs/student --seeds 0 1 2`` trains each on the digits
of FEDHUBERT_CORPUS (four speakers), scores it on those of FEDHUBERT_EVAL, and prints a JSON line for each; ``characters`` writes them (CTC) in
place of labels. Clients take turns in this process, without Flower's engine: the models are the simulation's, bit for bit.
"""

import argparse
import csv
import os
import statistics
import time
from pathlib import Path

import torch

from fedhubert.baselines.central import BaselineOptions, client_folder, train_baseline
from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.config import Config
from fedhubert.data.manifest import Manifest
from fedhubert.evaluation.finetuned import finetuned_score
from fedhubert.federation.server.session import run_federation
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.metrics import read_events
from tests.benchmarks.figures import figure
from tests.federation.in_process import InProcessGrid
from tests.flower import identify

WIDE = "model.conv_layers=[[64,10,5],[64,3,2],[64,3,2],[64,3,2],[64,3,2],[64,2,2],[64,2,2]]"
EXPERIMENTS = {"keywords": "speech_mini_keywords", "characters": "speech_mini_ctc"}
WAYS = ("federated", "central", "local")


def train(config: Config, way: str) -> list[Path]:
    """Train what is not there yet and return the folders of its models: of local training one for each client."""
    site._cached_site.cache_clear()
    if way != "federated":
        folder = train_baseline(config, BaselineOptions(local_only=way == "local"))
        everyone = range(config.federated.num_clients)
        return (
            [client_folder(folder, n).path for n in everyone] if way == "local" else [folder.path]
        )
    clients = config.federated.num_clients
    run_federation(
        InProcessGrid([{"partition-id": n, "num-partitions": clients} for n in range(clients)]),
        config,
    )
    return [RunFolder.of(config).path]


def digits_of(corpus: Path, manifest: Path, every: int = 1) -> Path:
    """Write each ``every``-th row of a corpus whose text is one English digit, of the digits' corpus alone (``fsdd``)."""
    with (corpus / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "fsdd"][::every]
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def score(run: Path, held_out: Manifest, key: str) -> dict[str, float]:
    """Return the figures of a run's newest model on the held-out speaker."""
    found = finetuned_score(run, held_out, key, "text", torch.device("cpu"), 0)
    return {"loss": found.loss, **{name: each.value for name, each in found.figures.items()}}


def costs(run: Path) -> dict[str, float]:
    """Return what a federated run sent, and its epsilon where it has one."""
    rounds = [event for event in read_events(run / "metrics.jsonl") if event["event"] == "round"]
    sent = round(sum(each["bytes_up"] + each["bytes_down"] for each in rounds) / 1e6, 3)
    private = rounds[-1].get("privacy") if rounds else None
    return {"sent_mb": sent, **({"epsilon": private["epsilon"]} if private else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=EXPERIMENTS)
    parser.add_argument(
        "--begin",
        nargs="+",
        default=["random"],
        help="random, or NAME=RUN; student: of model=student_tiny",
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["federated"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--every", type=int, default=1, help="score each so-manieth utterance alone"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="*", default=[], help="overrides of every training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    identify()
    corpus, held_out = Path(os.environ["FEDHUBERT_CORPUS"]), Path(os.environ["FEDHUBERT_EVAL"])
    manifest = digits_of(corpus, given.out / "digits.csv")
    unheard = Manifest.read(
        digits_of(held_out, given.out / "unheard.csv", given.every), str(held_out)
    )
    key, told = ("label_column", "accuracy") if given.task == "keywords" else ("text_column", "wer")
    for seed in given.seeds:
        for begin in given.begin:
            name, _, source = begin.partition("=")
            for way in given.ways:
                started = time.process_time()
                folders = train(
                    compose([
                        f"experiment={EXPERIMENTS[given.task]}", f"data.manifest={manifest}", f"data.root={corpus}", f"seed={seed}", WIDE, "resume=auto",
                        *(["model=student_tiny"] if name.startswith("student") else []),
                        *([f"init_from={source}"] if source else []),
                        f"out={given.out / f'{given.task}-{name}-{way}-{seed}'}", f"client.state_dir={given.out / 'state'}", *given.settings,
                    ]),
                    way,
                )  # fmt: skip
                seconds = time.process_time() - started
                found = [score(folder, unheard, key) for folder in folders]
                means = {
                    each: round(statistics.fmean(one[each] for one in found), 4)
                    for each in found[0]
                }
                more = {
                    **means,
                    **costs(folders[0]),
                    "cpu_s": round(seconds),
                    "settings": " ".join(given.settings),
                }
                figure(
                    f"{given.task} from {name}, {way}, seed {seed}: {told}",
                    means[told],
                    None,
                    "share",
                    **more,
                )


if __name__ == "__main__":
    main()
