"""Optional evaluation on the server, on a held-out manifest that the server may read."""

import numpy as np

from fedhubert import live
from fedhubert.config import Config
from fedhubert.data.batching import BatchPlan
from fedhubert.data.corpora import resolve_manifest
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.data.unreadable import LeftOut
from fedhubert.errors import ConfigError
from fedhubert.federation.phases.targets import Targets
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import Objective
from fedhubert.objectives.spec import spec_of
from fedhubert.targets.labels import assigned_labels
from fedhubert.targets.sets import of_speakers
from fedhubert.training.device import resolve_device
from fedhubert.training.local import evaluate


class ServerEvaluation:
    """Figures of the global model on ``evaluation.manifest``, with the same masks every round;
    ``objective`` as for :func:`evaluate`."""

    def __init__(
        self, config: Config, targets: Targets, objective: Objective | None = None
    ) -> None:
        needs_labels = config.task.needs_labels
        if config.evaluation.manifest is None or (needs_labels and not targets.centroids):
            raise ConfigError(
                "evaluation on the server needs evaluation.manifest and k-means targets",
                setting="evaluation.manifest",
            )
        self._config, self._objective = config, objective
        self._manifest = Manifest.read(
            resolve_manifest(config.evaluation.manifest), config.evaluation.root
        )
        lengths = self._manifest.lengths(config.data.sample_rate_hz)
        spec = spec_of(config.task)
        said = spec.annotations(self._manifest, config.data)
        rows = np.arange(len(self._manifest)) if said is None else np.flatnonzero(said.usable)
        self._plan = BatchPlan(
            lengths,
            rows,
            config.data,
            config.seed,
            0,
            purpose="server-validation",
            fixed_crops=spec.fixed_crops,
            whole=spec.whole_utterances,
        )
        self._left_out = LeftOut(self._manifest, rows, config.data.max_unreadable)
        self._labels = None if said is None else LabelSource(said.of, None)
        if needs_labels and targets.centroids:
            workers = config.data.num_workers
            labels = assigned_labels(
                self._manifest,
                self._plan.rows,
                targets.centroids,
                workers,
                source=of_speakers(targets.source, self._manifest, rows, self._left_out),
                left_out=self._left_out,
            )
            self._labels = LabelSource(labels.labels, labels.rate_hz)

    def score(self, model: HubertModel, model_round: int) -> dict[str, object]:
        """Return the figures of ``model`` (see
        :meth:`~fedhubert.objectives.spec.ObjectiveSpec.metrics`)."""
        config = self._config
        live.doing("scoring the model on the server's audio")
        positions = range(self._plan.num_batches)
        batches = load_batches(
            self._manifest,
            self._plan,
            positions,
            self._labels,
            mask_spec(config.task),
            config.data,
            self._left_out,
        )
        result = evaluate(
            model,
            batches,
            task=config.task,
            device=resolve_device("cpu"),
            objective=self._objective,
        )
        return {"model_round": model_round, **spec_of(config.task).metrics(result.metrics)}
