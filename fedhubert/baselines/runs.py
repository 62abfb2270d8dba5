"""One model of a baseline, trained round by round: it leaves the files of a federated run."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from fedhubert import live
from fedhubert.baselines.pool import ClientScore, Pool, figures
from fedhubert.config import Config
from fedhubert.federation.rounds.metrics import said
from fedhubert.formats.starting import start_from
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.spec import ObjectiveSpec, build_model, spec_of
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.metrics import Event, append_event
from fedhubert.runs.store import RoundStore
from fedhubert.targets.solving import plain_centroids
from fedhubert.training.central import CentralTrainer, RoundPlan, RoundResult
from fedhubert.training.parameters import ParameterLayout

log = logging.getLogger("fedhubert")


class BaselineRun:
    """One model, trained round by round, with the files of a federated run."""

    def __init__(
        self,
        pool: Pool,
        folder: RunFolder,
        kind: str,
        *,
        asked: dict[int, dict[int, int]],
        reset_each_round: bool,
        alone: int | None = None,
    ) -> None:
        config = pool.config
        self._pool, self._folder, self._config, self._asked, self._alone = (
            pool,
            folder,
            config,
            asked,
            alone,
        )
        self._kind = kind
        self._store = RoundStore(folder.checkpoints)
        self.model: HubertModel = build_model(config.model, config.task, config.seed)
        pool.prepare(self.model)
        if config.init_from is not None:
            start_from(self.model, config.init_from)
        self.model.to(pool.device)
        self.model.set_activation_checkpointing(config.client.activation_checkpointing)
        self.model.set_compiled(config.client.compile)
        self._trainer = CentralTrainer(
            self.model,
            config.client,
            config.task,
            config.seed,
            pool.device,
            reset_each_round=reset_each_round,
            partition=alone or 0,
            objective=pool.objective,
        )
        self._layout = ParameterLayout.of(self.model)
        self._history: list[Event] = []
        self._saved = 0
        self._finished = self._layout.to_vector(self.model)

    def train(self, plans: Sequence[RoundPlan]) -> None:
        """Train all rounds; interrupted, the last finished one is saved."""
        batches = self._pool.batches(plans, alone=self._alone is not None)
        try:
            for plan in plans:
                self._round(plan, batches)
            self._save()
        except KeyboardInterrupt:
            self._layout.load_vector(self.model, self._finished)
            self._save()
            log.warning("interrupted: round %d is saved", self._saved)
            raise
        finally:
            getattr(batches, "close", lambda: None)()

    def _round(self, plan: RoundPlan, batches: Any) -> None:
        started, last = time.monotonic(), self._config.federated.num_rounds
        name = self._kind.replace("_", " ") if self._alone is None else f"client {self._alone}"
        asked = sorted(self._asked[plan.number])
        live.doing(f"{name}: round {plan.number}/{last}", plan.number, last)
        client = self._config.client
        scored = asked if client.scores_in(plan.number) else []
        scores = self._pool.score(self.model, scored, client.validation_batches)
        validated = time.monotonic()
        live.counting(sum(map(len, plan.steps)), "batches")
        result = self._trainer.train_round(plan, batches, self._config.federated.num_rounds)
        ended = time.monotonic()
        event: Event = {
            "event": "round",
            "round": plan.number,
            "train": _training(self._pool.spec, plan, result),
            "validation": figures(self._pool.spec, scores, plan.number - 1) if scores else {},
            "asked": asked,
            "clients": rows_of(scores) or [{"partition": number} for number in asked],
            "failed": [],
            "bytes_down": 0,
            "bytes_up": 0,
            "seconds": {
                "validation": validated - started,
                "train": ended - validated,
                "round": ended - started,
            },
        }
        append_event(self._folder.metrics_file, event)
        self._history.append({key: event[key] for key in ("round", "train", "validation")})
        self._finished = self._layout.to_vector(self.model)
        log.log(
            logging.INFO if scores else logging.DEBUG,
            "round %d/%d: train %s | validation (round %d) %s | %d steps | %.1f s",
            plan.number,
            self._config.federated.num_rounds,
            said(event["train"], self._pool.spec),
            plan.number - 1,
            said(event["validation"], self._pool.spec) or "none",
            result.steps,
            ended - started,
        )
        if plan.number % self._config.checkpoint.every == 0:
            self._save()

    def _save(self) -> None:
        """Write the last finished round, unless it is written."""
        number = self._history[-1]["round"] if self._history else 0
        if number <= self._saved:
            return
        resume = {
            "baseline": self._kind,
            "targets_key": self._pool.key,
            **plain_centroids(self._pool.centroids),
        }
        metrics = {**self._history[-1], "baseline": self._kind, "history": self._history}
        path = self._store.save(
            number,
            self.model.state_dict(),
            config=self._config.model_dump(mode="json"),
            federated_metrics=metrics,
            resume=resume,
        )
        self._store.prune(self._config.checkpoint.keep_last)
        self._saved = number
        log.info("checkpoint %s", path)

    def finish(self, scores: dict[int, ClientScore]) -> None:
        say_final(self._kind, record_final(self._config, self._folder, scores, {}), self._pool.spec)


def record_final(
    config: Config, folder: RunFolder, scores: dict[int, ClientScore], more: dict[str, object]
) -> dict[str, object]:
    number = config.federated.num_rounds
    validation = figures(spec_of(config.task), scores, number)
    event = {
        "event": "final",
        "round": number,
        "num_rounds": number,
        "validation": validation,
        "clients": rows_of(scores),
        "failed": [],
    }
    append_event(folder.metrics_file, {**event, **more})
    return validation


def say_final(name: str, validation: dict[str, object], spec: ObjectiveSpec) -> None:
    log.info(
        "%s, final: validation %s over %d clients",
        name,
        said(validation, spec),
        validation["clients"],
    )


def _training(spec: ObjectiveSpec, plan: RoundPlan, result: RoundResult) -> dict[str, object]:
    return {
        "model_round": plan.number - 1,
        **spec.metrics(result.sums.metrics),
        "audio_s": result.sums.audio_s,
        "steps": result.steps,
        "grad_norm": result.grad_norm,
    }


def rows_of(scores: dict[int, ClientScore]) -> list[dict[str, object]]:
    return [{"partition": number, **scores[number]} for number in sorted(scores)]
