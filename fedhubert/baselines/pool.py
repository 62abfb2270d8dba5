"""The audio of all clients in one place, cut and labelled exactly as the federated run would: same
splits, crops, masks, clusters."""

import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import reduce

import numpy as np
import numpy.typing as npt

from fedhubert import live
from fedhubert.clients import statistics as site_figures
from fedhubert.clients.data import Site, open_site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.samples import release_extractor
from fedhubert.config import ClientJob, Config
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import load_batches, mask_spec
from fedhubert.data.threads import map_in_order
from fedhubert.federation.phases.teacher import ServerTeacher, prepare_student
from fedhubert.federation.roster.sampling import asking_order
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import Objective
from fedhubert.objectives.spec import ObjectiveSpec, spec_of
from fedhubert.runs.metrics import Event
from fedhubert.targets.agreement import agreement
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.kmeans import Centroids, targets_key
from fedhubert.targets.labels import most_frequent_share, unigram_entropy_nats
from fedhubert.targets.solving import Candidates, SetsKMeans, drawn_points
from fedhubert.training.central import RoundPlan, rounds_of_clients
from fedhubert.training.device import resolve_device
from fedhubert.training.local import evaluate
from fedhubert.training.schedule import round_progress
from fedhubert.training.stepping import Sums

log = logging.getLogger("fedhubert")

PRECOMPUTED = "precomputed"

ClientScore = dict[str, int | float]


class Pool:
    """All clients' data on this host.

    Args:
        config, teacher: As :func:`~fedhubert.federation.phases.teacher.with_teacher` returns them.

    Attributes:
        centroids: The clusters of each set; none before :meth:`label`, and with precomputed
            labels.
        spec, objective: What is learned.
    """

    def __init__(self, config: Config, teacher: ServerTeacher | None = None) -> None:
        self.config = config
        self.job: ClientJob = client_job(config)
        self.site: Site = open_site(self.job, {"partition-id": 0, "num-partitions": 1})
        self.device = resolve_device(self.site.job.client.device)
        self.clients: list[Partition] = [
            self.site.partition(number) for number in range(self.job.num_clients)
        ]
        self.centroids: Centroids = ()
        self.key = PRECOMPUTED
        self._extractor = self._keep_extractor()
        self._teacher = teacher
        self.spec = spec_of(self.job.task)
        self.objective = self._taught()

    def _taught(self) -> Objective:
        """Put the task's teacher, if it has one, where the site looks for it; return what is
        learned."""
        if self._teacher is None:
            return self.spec.loss()
        self._teacher.teacher.save(self.site.teacher_folder)
        return self.spec.loss(self.site.teach(self.job.task, self.device)[1])

    def prepare(self, model: HubertModel) -> None:
        """Give a student its teacher's part; other models stay as they are."""
        if self._teacher is not None:
            prepare_student(model, self.config, self._teacher)

    def _keep_extractor(self) -> str:
        """Put the model of a second iteration where the site looks for it; return its key."""
        extractor = Extractor.of(self.config.targets)
        if extractor is None:
            return ""
        extractor.save(self.site.extractor_folder)
        return extractor.key

    def rounds(self) -> dict[int, dict[int, int]]:
        """Return round -> client -> steps of the federated run in which every client asked first
        answers."""
        federated, client = self.config.federated, self.job.client
        steps = {
            part.number: client.steps_per_round(part.train_plan.num_batches)
            for part in self.clients
        }
        asked = [
            sorted(asking_order(self.config, number)[: federated.clients_per_round])
            for number in range(1, federated.num_rounds + 1)
        ]
        return rounds_of_clients(asked, steps)

    def label(self, on_event: Callable[[Event], None], centroids: Centroids = ()) -> None:
        """Cluster (unless ``centroids`` are given) and label everyone's audio, if the task needs
        it; tells of each iteration and of the labels."""
        if not self.config.task.needs_labels:
            return
        targets = self.config.targets
        if targets.kind == "kmeans":
            self.centroids = centroids or self._fit(on_event)
            self.key = targets_key(self.centroids, self.site.source(self._extractor).key)
        counts: dict[str, npt.NDArray[np.int64]] = {}
        live.doing("labelling every client's audio")
        live.counting(len(self.clients), "clients")
        for part in self.clients:
            store = self.site.labels(part, self.key, self.centroids, self._extractor)
            for name, counted in site_figures.label_counts(self.site, part, store).items():
                counts[name] = counts.get(name, 0) + counted
            live.done()
        release_extractor()
        found = agreement(counts["contingency"]) if targets.label_column else None
        about = {"key": self.key, "agreement": None if found is None else asdict(found)}
        on_event(
            {
                "event": "targets",
                **about,
                **{f"{name}_labels": _about(counts[name]) for name in ("train", "validation")},
            }
        )

    def _seeds(self) -> list[Candidates]:
        """Return what the federation would choose the first centroids of each set from."""
        targets = self.config.targets
        if targets.seeding == "local":
            seeds = [
                site_figures.seeds(self.site, part, self._extractor)[0] for part in self.clients
            ]
            return [list(of_one) for of_one in zip(*seeds, strict=True)]
        moments = [
            site_figures.moments(self.site, part, self._extractor)[0] for part in self.clients
        ]
        return drawn_points(
            [reduce(operator.add, of_one) for of_one in zip(*moments, strict=True)],
            targets,
            self.config.seed,
        )

    def _fit(self, on_event: Callable[[Event], None]) -> Centroids:
        """Lloyd's algorithm over everyone's frames from the federation's own seeds: to the bit what
        the federation finds."""
        solvers = SetsKMeans(self.config.targets, self.config.seed)
        live.doing("k-means: features and first centroids")
        solvers.seed(self._seeds())
        while not solvers.done:
            asked = solvers.asked
            live.doing(*solvers.doing)
            live.counting(len(self.clients), "clients")
            parts = []
            for part in self.clients:
                parts.append(site_figures.statistics(self.site, part, asked, self._extractor))
                live.done()
            total = Counter[str]()
            for _, metrics in parts:
                total.update(metrics)
            statistics = {
                place: reduce(operator.add, (found[place] for found, _ in parts)) for place in asked
            }
            solvers.step(statistics)
            log.info("%s", solvers)
            for event in solvers.events(statistics, total):
                on_event(event)
        return solvers.centroids

    def batches(self, plans: Sequence[RoundPlan], *, alone: bool = False) -> Iterator[Batch]:
        """Yield the training micro-batches of all rounds in order, read ahead in
        ``data.num_workers`` threads, with the masks of their round.

        Their positions, from which dropout draws, are made unique over clients, unless a client is
        trained ``alone``.
        """
        count = len(self.clients)
        order = [
            (micro_batch, round_progress(plan.number, self.job.num_rounds))
            for plan in plans
            for step in plan.steps
            for micro_batch in step
        ]

        def load(index: int) -> Batch:
            (number, position), progress = order[index]
            part = self.clients[number]
            (batch,) = self._load(
                part, part.train_plan, [position], num_workers=0, progress=progress
            )
            return batch if alone else replace(batch, position=position * count + number)

        for batch in map_in_order(load, range(len(order)), self.job.data.num_workers):
            yield batch
            live.done()

    def score(
        self, model: HubertModel, clients: Iterable[int], num_batches: int = 0
    ) -> dict[int, ClientScore]:
        """Score a model on clients' validation splits (or their first batches): the same crops and
        masks as the federation's evaluation."""
        scores = {}
        for number in clients:
            plan, client = self.clients[number].validation_plan, self.job.client
            batches = self._load(
                self.clients[number],
                plan,
                plan.first(num_batches),
                num_workers=self.job.data.num_workers,
            )
            result = evaluate(
                model,
                batches,
                task=self.job.task,
                device=self.device,
                precision=client.precision,
                objective=self.objective,
            )
            scores[number] = {
                f"validation_{name}": figure for name, figure in result.metrics.items()
            }
        return scores

    def _load(
        self,
        part: Partition,
        plan: BatchPlan,
        positions: Iterable[int],
        num_workers: int,
        progress: float = 1.0,
    ) -> Iterator[Batch]:
        source = self.site.label_source(self.job.task, part, self.key)
        data = self.job.data.model_copy(update={"num_workers": num_workers})
        mask = mask_spec(self.job.task, progress)
        return load_batches(self.site.manifest, plan, positions, source, mask, data, part.left_out)


def figures(
    spec: ObjectiveSpec, scores: dict[int, ClientScore], model_round: int
) -> dict[str, object]:
    """Return the figures over clients' validation splits, as a federated run's events have them."""
    total = Sums()
    for _, score in sorted(scores.items()):
        total.merge(
            Sums({name.removeprefix("validation_"): value for name, value in score.items()})
        )
    return {"model_round": model_round, **spec.metrics(total.metrics), "clients": len(scores)}


def _about(counts: npt.NDArray[np.int64]) -> dict[str, object]:
    return {
        "frames": int(counts.sum()),
        "clusters_used": int((counts > 0).sum()),
        "entropy_nats": unigram_entropy_nats(counts),
        "most_frequent_share": most_frequent_share(counts),
    }
