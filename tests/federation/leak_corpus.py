"""Three sites with audio, names and texts that can be searched for, and runs over them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.data.audio import read_audio
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import incoming
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.targets.mfcc import mfcc_features
from tests.flower import identify
from tests.integration.conftest import SMALL

from .in_process import InProcessGrid, open_policy
from .leak_scan import LeakScanner, Site

NODES, UTTERANCES, MIN_FRAMES = 3, 9, 20
SETTINGS = [
    "experiment=demo_fedavg",
    *SMALL,
    "targets.num_clusters=6",
    "federated.num_rounds=2",
    "data.partition.validation_fraction=0.25",
]

Node = dict[str, str | int]


@dataclass
class Corpus:
    """Three sites' audio: noise of changing colour and loudness, at 16 and 8 kHz, and a manifest for each and for all."""

    folder: Path
    waveforms: list[list[np.ndarray]]
    rates_hz: list[list[int]]

    def manifest(self, number: int | str) -> str:
        return str(self.folder / f"{number}.csv")

    def nodes(self, folder: Path, **changes: str | int) -> list[Node]:
        """Sites with manifests of their own; ``changes`` are those of site 1."""
        nodes: list[Node] = [
            {
                "partition-id": number,
                "num-partitions": NODES,
                "manifest": self.manifest(number),
                "state-dir": str(folder / f"state{number}"),
                "label-column": "phone",
                "policy": open_policy(
                    self.folder
                ),  # three utterances of a second are nothing for a strict one
            }
            for number in range(NODES)
        ]
        nodes[1] |= {key.replace("_", "-"): value for key, value in changes.items()}
        return nodes

    def scanner(
        self, labels: list[list[np.ndarray]] | None = None, extra: list[np.ndarray] | None = None
    ) -> LeakScanner:
        """``labels`` by site and utterance; ``extra``: rows of other features than MFCC, by site."""
        sites = []
        for number, (waves, rates) in enumerate(zip(self.waveforms, self.rates_hz, strict=True)):
            mfcc = np.concatenate(
                [mfcc_features(read_audio(self.file(number, index))) for index in range(len(waves))]
            )
            rows = [mfcc] if extra is None else [mfcc, extra[number]]
            sites.append(
                Site(waves, rates, rows, labels[number] if labels else [], num_train=UTTERANCES - 2)
            )
        return LeakScanner(sites, MIN_FRAMES)

    def file(self, number: int, index: int) -> Path:
        return self.folder / f"Qzfile-folder{number}/Qzfile-{number}-{index}.wav"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("Qzfile-corpus")
    rng = np.random.default_rng(0)
    made = Corpus(folder, [], [])
    header = "path,speaker,num_samples,sample_rate,utterance,text,phone"
    everyone = [header]
    for number in range(NODES):
        waves, rates, lines = [], [], [header]
        for index in range(UTTERANCES):
            rate_hz = 8000 if index == 2 else 16000
            count = int(rate_hz * (0.9 + 0.07 * index)) + 37 * number + 11 * index  # no two alike
            loudness = 0.03 + 0.1 * np.abs(np.sin(np.arange(count) / rate_hz * 9 + number + index))
            wave = torch.from_numpy(loudness * rng.standard_normal(count))
            colour = torch.tensor([0.4 * np.cos(index), 0.2])
            wave = torch.nn.functional.conv1d(
                wave[None, None], torch.cat([torch.ones(1), colour])[None, None].double()
            )[0, 0]
            samples = np.rint(wave.numpy().clip(-1, 1) * 32767).astype(np.int16)
            path = made.file(number, index)
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, samples, rate_hz, subtype="PCM_16")
            waves.append(samples.astype(np.float32) / 32768)
            rates.append(rate_hz)
            about = f"Qzident-{number}-{index},Qztext number {number} {index},{'ab'[index % 2]}"
            lines.append(
                f"{path.relative_to(folder)},Qzspeaker{number},{len(samples)},{rate_hz},{about}"
            )
        made.waveforms.append(waves)
        made.rates_hz.append(rates)
        Path(made.manifest(number)).write_text("\n".join(lines) + "\n")
        everyone += lines[1:]
    Path(made.manifest("everyone")).write_text("\n".join(everyone) + "\n")
    return made


def train(out: Path, nodes: list[Node], *overrides: str) -> tuple[RunResult, InProcessGrid]:
    incoming._cached = None  # as in a new process
    site._cached_site.cache_clear()
    grid = InProcessGrid(nodes)
    return run_federation(grid, compose([*SETTINGS, f"out={out}", *overrides])), grid


@pytest.fixture(scope="session")
def first(
    corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunResult, InProcessGrid, list[list[np.ndarray]]]:
    """A run of sites with manifests of their own: description, k-means, labels with their agreement, rounds, last evaluation; and the labels."""
    identify()
    folder = tmp_path_factory.mktemp("first")
    counted = ["targets.label_column=phone", "targets.label_values=[a,b]"]
    result, grid = train(folder / "out", corpus.nodes(folder), *counted)
    key = json.loads(str(grid.requests[-1].content.config_records["request"]["task"]))["targets"]
    labels = []
    for node in corpus.nodes(folder):
        theirs = site.open_site(client_job(compose([*SETTINGS, *counted])), node)
        partition = theirs.partition(int(node["partition-id"]))
        store = theirs.labels(partition, key)
        labels.append([np.array(store.labels(row)) for row in sorted(partition.rows.tolist())])
    return result, grid, labels


ROUNDS = (
    "query.describe",
    "train.kmeans_seed",
    "train.kmeans_step",
    "train.label",
    "train.round",
    "evaluate.model",
)


@pytest.fixture(scope="session")
def scanner(corpus: Corpus, first: Any) -> LeakScanner:
    return corpus.scanner(first[2])
