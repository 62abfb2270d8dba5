"""Federated equals central where it must: the client's own handlers on generated audio, without Flower in between."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import ClientJob, Config, client_job
from fedhubert.data.batching import Batch
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.federation import client
from fedhubert.federation.exact_sum import ExactSum, PartialSum
from fedhubert.federation.protocol import Request
from fedhubert.federation.server_optimizers import FedAvg
from fedhubert.federation.site import open_site
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.targets import kmeans
from fedhubert.training.local import Progress, train_locally
from fedhubert.training.parameters import ParameterLayout

CLUSTERS = 6
SMALL = [
    "model.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    *("model.embed_dim=32", "model.ffn_dim=64", "model.num_heads=2", "model.pos_conv_kernel=16", "model.pos_conv_groups=4"),
    *("data.min_seconds=0.5", "data.max_seconds=1.5", "data.batch_seconds=3", f"targets.num_clusters={CLUSTERS}"),
    *("data.partition.kind=speaker", "federated.num_clients=3", "federated.num_rounds=3"),
]


@pytest.fixture(scope="module")
def settings(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("site")
    manifest = folder / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    return [*SMALL, f"data.manifest={manifest}", f"data.root={tone_folder}", f"client.state_dir={folder / 'state'}"]


class Clients:
    """Three clients behind their handlers, with labels made."""

    def __init__(self, overrides: list[str]) -> None:
        self.config: Config = compose(overrides)
        self.job: ClientJob = client_job(self.config)
        self.node = {"partition-id": 0, "num-partitions": 1}
        site = open_site(self.job, self.node)
        features = np.concatenate([site.fitting_features(site.partition(number)) for number in range(self.job.num_clients)])
        self.centroids = kmeans.local_seeds(features, CLUSTERS, 0, 0)[0]
        assert len(self.centroids) == CLUSTERS
        self.key = kmeans.centroids_hash(self.centroids)
        self.site = site
        for number in range(self.job.num_clients):
            site.labels(site.partition(number), self.key, self.centroids)
        self.layout = ParameterLayout.of(self.model())

    def model(self) -> HubertModel:
        return build_hubert(self.config.model, self.config.seed)

    def initial(self) -> torch.Tensor:
        return self.layout.to_vector(self.model())

    def round(self, model: torch.Tensor, number: int, partitions: list[int], positions: dict[int, int]) -> dict[str, Any]:
        task = {
            "round": number,
            "partitions": partitions,
            "positions": {str(p): positions.get(p, 0) for p in partitions},
            "layout": self.layout.fingerprint,
            "targets": self.key,
        }
        handled = client.train_round(Request(self.job, "test", json.loads(json.dumps(task)), {"model": model.numpy()}), self.node)
        assert handled["failures"] == [], handled["failures"]
        return handled

    def flat_mean(self, model: torch.Tensor, number: int, positions: dict[int, int]) -> torch.Tensor:
        fold = ExactSum(model.numel())
        for partition in range(self.job.num_clients):
            handled = self.round(model, number, [partition], positions)
            fold.add(torch.from_numpy(handled["arrays"]["update"]), handled["metrics"][partition]["weight"])
        return fold.mean()

    def batches(self, partition: int, positions: range) -> list[Batch]:
        plan = self.site.partition(partition).train_plan
        labels = self.site.labels(self.site.partition(partition), self.key)
        source = LabelSource(labels.labels, labels.rate_hz)
        return list(load_batches(self.site.manifest, plan, positions, source, mask_spec(self.job.task), self.job.data))


def relative(left: torch.Tensor, right: torch.Tensor, start: torch.Tensor) -> float:
    """Difference of two models, relative to how far they moved."""
    return float((left - right).norm() / (right - start).norm())


def test_one_client_with_server_rate_one_is_central_training(settings: list[str]) -> None:
    """Three rounds with dropout on and a fresh optimiser each round, against the same stream trained in one place."""
    clients = Clients([*settings, "client.local_steps=3", "model.dropout=0.1", "model.layer_drop=0.2"])
    start = model = clients.initial()
    server, position = FedAvg(1.0), 0
    central = clients.model()
    for number in (1, 2, 3):
        handled = clients.round(model, number, [1], {1: position})
        fold = ExactSum(model.numel())
        fold.add(torch.from_numpy(handled["arrays"]["update"]), handled["metrics"][1]["weight"])
        model = server.step(model, fold.mean())
        train_locally(
            central,
            iter(clients.batches(1, range(position, position + 3))),
            client=clients.job.client,
            task=clients.job.task,
            progress=Progress(number, clients.job.num_rounds, 3),
            seed=clients.job.seed,
            partition=1,
            device=torch.device("cpu"),
        )
        position += handled["metrics"][1]["train_micro_batches"]
    assert position == 9
    assert relative(model, clients.layout.to_vector(central), start) < 1e-5


def test_one_plain_sgd_step_of_each_client_is_one_accumulated_central_step(settings: list[str]) -> None:
    sgd = [
        "client.optimizer=sgd",
        "client.lr=0.5",
        "client.schedule=constant",
        "client.warmup_fraction=0",
        "client.grad_clip_norm=0",
    ]
    clients = Clients([*settings, *sgd, "client.local_steps=1", "client.weight_decay=0"])
    start = clients.initial()
    federated = FedAvg(1.0).step(start, clients.flat_mean(start, 1, {}))
    central = clients.model()
    train_locally(
        central,
        iter([batch for partition in range(3) for batch in clients.batches(partition, range(1))]),
        client=clients.job.client.model_copy(update={"accumulate": 3}),
        task=clients.job.task,
        progress=Progress(1, clients.job.num_rounds, 1),
        seed=clients.job.seed,
        partition=0,
        device=torch.device("cpu"),
    )
    assert relative(federated, clients.layout.to_vector(central), start) < 1e-5


def test_a_shards_partial_sum_has_the_bits_of_the_flat_round(settings: list[str]) -> None:
    clients = Clients([*settings, "client.local_steps=2", "model.dropout=0.1"])
    start = clients.initial()
    expected = clients.flat_mean(start, 1, {})
    for shards in ([[0, 1, 2]], [[2, 0], [1]]):
        fold = ExactSum(start.numel())
        for shard in shards:
            handled = clients.round(start, 1, shard, {})
            weight = sum(metrics["weight"] for metrics in handled["metrics"].values())
            if len(shard) == 1:
                fold.add(torch.from_numpy(handled["arrays"]["update"]), weight)
            else:
                fold.merge(PartialSum(torch.from_numpy(handled["arrays"]["sum"]), weight, handled["info"]["bound"]))
        assert torch.equal(fold.mean(), expected)


def test_fedprox_without_its_term_is_fedavg_and_with_it_stays_closer(settings: list[str]) -> None:
    steps = "client.local_steps=4"
    start = Clients([*settings, steps]).initial()
    plain = Clients([*settings, steps, "federated.strategy=FedAvg"]).flat_mean(start, 1, {})
    none = Clients([*settings, steps, "federated.strategy=FedProx", "federated.proximal_mu=0"]).flat_mean(start, 1, {})
    strong = Clients([*settings, steps, "federated.strategy=FedProx", "federated.proximal_mu=50"]).flat_mean(start, 1, {})
    assert torch.equal(plain, none)
    assert float(strong.norm()) < float(plain.norm())


def test_the_weight_of_an_update_is_what_the_configuration_says(settings: list[str]) -> None:
    for weight_by, expected in (("uniform", lambda m: 1), ("frames", lambda m: m["train_masked_frames"])):
        clients = Clients([*settings, "client.local_steps=1", f"federated.weight_by={weight_by}"])
        handled = clients.round(clients.initial(), 1, [0], {})
        assert handled["metrics"][0]["weight"] == expected(handled["metrics"][0])
