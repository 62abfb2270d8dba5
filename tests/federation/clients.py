"""Clients' handlers and the server's aggregation, called in this process without a federation."""

import math

import numpy as np
import pytest
import torch

from fedhubert.clients.data import open_site
from fedhubert.compose import compose
from fedhubert.config import ClientJob, Config
from fedhubert.data.batching import Batch
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.federation.rounds.aggregate import RoundFold
from fedhubert.federation.rounds.limits import RoundLimits
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.site.train import train_round
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.updates.exact_sum import ExactSum
from fedhubert.federation.wire.messages.rounds import Train, Trained
from fedhubert.federation.wire.protocol import Reply, Request
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.targets import kmeans
from fedhubert.targets.features import parts_of
from fedhubert.training.parameters import ParameterLayout

CLUSTERS = 6
SMALL = [
    "model.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    *(
        "model.embed_dim=32",
        "model.ffn_dim=64",
        "model.num_heads=2",
        "model.pos_conv_kernel=16",
        "model.pos_conv_groups=4",
    ),
    *(
        "data.min_seconds=0.5",
        "data.max_seconds=1.5",
        "data.batch_seconds=3",
        f"targets.num_clusters={CLUSTERS}",
    ),
    *("data.partition.kind=speaker", "federated.num_clients=3", "federated.num_rounds=3"),
]


@pytest.fixture(scope="module")
def settings(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    state = tmp_path_factory.mktemp("site") / "state"
    return ["experiment=demo_fedavg", *SMALL, *data, f"client.state_dir={state}"]


class Clients:
    """Three clients behind their handlers, with labels made."""

    def __init__(self, overrides: list[str]) -> None:
        self.config: Config = compose(overrides)
        self.job: ClientJob = client_job(self.config)
        self.node = {"partition-id": 0, "num-partitions": 1}
        site = open_site(self.job, self.node)
        features = np.concatenate(
            [
                site.fitting_features(site.partition(number))
                for number in range(self.job.num_clients)
            ]
        )
        source = site.source("")
        self.centroids = tuple(
            kmeans.local_seeds(part, CLUSTERS, 0, 0, 1)[0]
            for part in parts_of(features, source.widths)
        )
        assert all(len(centroids) == CLUSTERS for centroids in self.centroids)
        self.key = kmeans.targets_key(self.centroids, source.key)
        self.site = site
        for number in range(self.job.num_clients):
            site.labels(site.partition(number), self.key, self.centroids)
        self.layout = ParameterLayout.of(self.model())
        self.norm_limit: float | None = None
        self.budget_s = 3600.0
        self.steps: dict[int, int] = {}
        self.site_rounds: dict[int, int] = {}

    def model(self) -> HubertModel:
        return build_hubert(self.config.model, self.config.seed)

    def initial(self) -> torch.Tensor:
        return self.layout.to_vector(self.model())

    def round(
        self,
        model: torch.Tensor,
        number: int,
        partitions: list[int],
        positions: dict[int, int],
        failures: dict[int, str] | None = None,
    ) -> Trained:
        task = Train(
            round=number,
            partitions=tuple(partitions),
            positions={p: positions.get(p, 0) for p in partitions},
            layout=self.layout.fingerprint,
            targets=self.key,
            norm_limit=self.norm_limit,
            budget_s=self.budget_s,
            steps=self.steps or None,
            site_rounds={p: self.site_rounds.get(p, 0) for p in partitions},
            checkpoints=(0,),
            arrays={"model": model.numpy()},
        )
        trained, failed = train_round(Request(self.job, "test", task), self.node)
        assert {failure.partition: failure.code for failure in failed} == (failures or {}), failed
        assert isinstance(trained, Trained)
        return trained

    def flat_mean(
        self, model: torch.Tensor, number: int, positions: dict[int, int]
    ) -> torch.Tensor:
        return self.mean(
            model, number, [[partition] for partition in range(self.job.num_clients)], positions
        )

    def limits(self) -> RoundLimits:
        """Return what the server would believe of these clients, however long their updates are."""
        described = {}
        for number in range(self.job.num_clients):
            partition = self.site.partition(number)
            seconds = self.site.manifest.lengths(16000) / 16000
            described[number] = {
                "train_utterances": len(partition.train_rows),
                "validation_utterances": len(partition.validation_rows),
                "train_audio_s": float(seconds[partition.train_rows].sum()),
                "validation_audio_s": float(seconds[partition.validation_rows].sum()),
                "batches_per_epoch": partition.train_plan.num_batches,
            }
        return RoundLimits(self.config, described, norm=math.inf)

    def mean(
        self, model: torch.Tensor, number: int, shards: list[list[int]], positions: dict[int, int]
    ) -> torch.Tensor:
        """Return what the server makes of the replies of nodes that host ``shards``."""
        outcome = RoundOutcome(number, list(range(self.job.num_clients)))
        total = ExactSum(self.layout.numel)
        about = {"total": total, "seed": self.config.seed}
        fold = RoundFold(
            self.config.federated, 0.0, self.layout, model, outcome, self.limits(), **about
        )
        fold.expect(dict(enumerate(shards)))
        for node, shard in enumerate(shards):
            fold.add(Reply(node, self.round(model, number, shard, positions)))
        assert outcome.failures == [] and len(outcome.clients) == self.job.num_clients
        self.outcome = outcome
        return fold.mean()

    def batches(self, partition: int, positions: range) -> list[Batch]:
        plan = self.site.partition(partition).train_plan
        labels = self.site.labels(self.site.partition(partition), self.key)
        source = LabelSource(labels.labels, labels.rate_hz)
        return list(
            load_batches(
                self.site.manifest, plan, positions, source, mask_spec(self.job.task), self.job.data
            )
        )


def relative(left: torch.Tensor, right: torch.Tensor, start: torch.Tensor) -> float:
    """Difference of two models, relative to how far they moved."""
    return float((left - right).norm() / (right - start).norm())
