"""From a round's outcome to the figures that ``metrics.jsonl`` and checkpoints carry."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from fedhubert.clients import Metrics
from fedhubert.durations import duration
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.secure.figures import LOSS, LOSS_SQUARED, SCORED
from fedhubert.objectives.spec import ObjectiveSpec
from fedhubert.reporting.fairness import COMPARED, HIGHER_IS_BETTER, fairness
from fedhubert.reporting.learning import Levels
from fedhubert.runs.metrics import Event

LARGEST = 2.0**63
"""No figure of a client is as large."""


def round_event(outcome: RoundOutcome, objective: ObjectiveSpec) -> Event:
    """Return the round's line of ``metrics.jsonl``."""
    clients = outcome.clients.values()
    return {
        "event": "round",
        "round": outcome.number,
        "train": {
            "model_round": outcome.number - 1,
            **objective.metrics(_sums(outcome, "train_")),
            # whatever the order
            "audio_s": _audio_s(outcome),
            "steps": int(sum(client["train_steps"] for client in clients)),
        },
        "validation": validation_metrics(outcome, objective, model_round=outcome.number - 1),
        "fairness": fairness_of(outcome, objective),
        "drift": outcome.drift,
        **_cut_off(outcome),
        "asked": outcome.asked,
        "clients": per_client(outcome),
        "failed": failed(outcome),
        "bytes_down": outcome.bytes_down,
        "bytes_up": outcome.bytes_up,
        "bytes_down_fp32": outcome.bytes_down_fp32,
        "bytes_up_fp32": outcome.bytes_up_fp32,
        **({"privacy": outcome.privacy} if outcome.privacy else {}),
        **({"secure": outcome.secure} if outcome.secure else {}),
        "seconds": dict(outcome.seconds),
    }


def final_event(
    outcome: RoundOutcome, objective: ObjectiveSpec, *, num_rounds: int, best_round: int
) -> Event:
    """Return the last line of ``metrics.jsonl``: how the final model does on every client's
    validation split."""
    return {
        "event": "final",
        "round": outcome.number,
        "num_rounds": num_rounds,
        "best_round": best_round,
        "validation": validation_metrics(outcome, objective, model_round=outcome.number),
        "fairness": fairness_of(outcome, objective),
        "clients": per_client(outcome),
        "failed": failed(outcome),
    }


def data_summary(partitions: Mapping[int, Metrics]) -> dict[str, int | float]:
    """Return counts over all clients' data."""
    about = partitions.values()
    return {
        "clients": len(about),
        "utterances": int(
            sum(client["train_utterances"] + client["validation_utterances"] for client in about)
        ),
        "train_audio_s": math.fsum(client["train_audio_s"] for client in about),
        "validation_audio_s": math.fsum(client["validation_audio_s"] for client in about),
    }


def validation_metrics(
    outcome: RoundOutcome, objective: ObjectiveSpec, *, model_round: int
) -> dict[str, Any]:
    """Return the figures over the validation splits of the clients heard, weighted by frames; empty
    without any."""
    sums = _sums(outcome, "validation_")
    if not sums.get(objective.counted):
        return {}
    figures = {
        "model_round": model_round,
        **objective.metrics(sums),
        "clients": len(outcome.clients),
    }
    if outcome.pooled:
        return figures  # there is no median of what nobody sees
    own = [
        objective.metrics(_sums_of(client, "validation_")) for client in outcome.clients.values()
    ]
    heard = [each for each in own if each.get(objective.counted)]
    names = [name for name in COMPARED if name in figures]
    return {
        **figures,
        "median": {name: statistics.median(each[name] for each in heard) for name in names},
    }


def fairness_of(outcome: RoundOutcome, objective: ObjectiveSpec) -> dict[str, Any]:
    """Return how evenly the model scored serves the clients heard (see
    :func:`~fedhubert.reporting.fairness.fairness`): by their accuracy or errors, or by their loss
    where there are none. Of a secure sum mean and spread of the losses are known."""
    if outcome.pooled:
        return _spread(outcome.pooled)
    scores = [
        objective.metrics(_sums_of(client, "validation_")) for client in outcome.clients.values()
    ]
    scores = [score for score in scores if score.get(objective.counted)]
    for figure in (*COMPARED[1:], COMPARED[0]):
        better = figure in HIGHER_IS_BETTER
        values = [score[figure] for score in scores if figure in score]
        if values:
            return {"figure": figure, **fairness(values, higher_is_better=better)}
    return {}


def check_metrics(metrics: Mapping[str, int | float], objective: ObjectiveSpec) -> None:
    """Raise ``ValueError`` if a client's numbers are out of range, or no figures can be made of its
    sums."""
    if not all(abs(value) < LARGEST for value in metrics.values()):  # nor NaN
        raise ValueError("numbers out of range")
    for prefix in ("train_", "validation_"):
        sums = {
            name.removeprefix(prefix): value
            for name, value in metrics.items()
            if name.startswith(prefix)
        }
        if sums:
            try:
                objective.metrics(sums)
            except KeyError as error:
                raise ValueError(f"no {prefix}{error.args[0]}") from None


def said(figures: Mapping[str, Any], objective: ObjectiveSpec) -> str:
    """Return the figures in a few words, the objective's own."""
    return " ".join(
        f"{word} {figures[name]:.4f}" for name, word in objective.words.items() if name in figures
    )


def _sums(outcome: RoundOutcome, prefix: str) -> dict[str, float]:
    """Add the clients' figures up, in partition order, so that sums do not depend on who answered
    first; of a secure sum they are added up already."""
    if outcome.pooled:
        return _sums_of(outcome.pooled, prefix)
    sums: dict[str, float] = {}
    for partition in sorted(outcome.clients):
        for name, value in _sums_of(outcome.clients[partition], prefix).items():
            sums[name] = sums.get(name, 0) + value
    return sums


def _sums_of(client: Metrics, prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in client.items()
        if name.startswith(prefix)
    }


def _audio_s(outcome: RoundOutcome) -> float:
    if outcome.pooled:
        return float(outcome.pooled["train_audio_s"])
    # whatever the order
    return math.fsum(client["train_audio_s"] for client in outcome.clients.values())


def _spread(pooled: Mapping[str, int | float]) -> dict[str, Any]:
    """Return mean and spread of the clients' losses, from their sum and that of their squares."""
    count = int(pooled[SCORED])
    if not count:
        return {}
    mean = pooled[LOSS] / count
    spread = math.sqrt(max(0.0, pooled[LOSS_SQUARED] / count - mean**2))
    return {"figure": "loss", "mean": mean, "spread": spread, "clients": count}


def per_client(outcome: RoundOutcome) -> list[dict[str, Any]]:
    return [
        {"partition": partition, **outcome.clients[partition]}
        for partition in sorted(outcome.clients)
    ]


def failed(outcome: RoundOutcome) -> list[dict[str, Any]]:
    ordered = sorted(outcome.failures, key=lambda failure: (failure.partition, failure.code))
    return [
        {"partition": item.partition, "code": item.code, "setting": item.setting}
        for item in ordered
    ]


def history_entry(event: Event, *, clients_figures: bool = True) -> Event:
    """The part of a round's event that checkpoints carry: no timings, so that equal runs have equal
    checkpoints.

    Without ``clients_figures`` nothing in it is measured on clients, or tells how many took part.
    """
    private = {"privacy": event["privacy"]} if "privacy" in event else {}
    if not clients_figures:
        return {
            "round": event["round"],
            "train": {},
            "validation": {},
            "server_validation": event.get("server_validation"),
            **private,
        }
    kept = {key: event[key] for key in ("round", "train", "validation", "bytes_down", "bytes_up")}
    return {
        **kept,
        "server_validation": event.get("server_validation"),
        "clients": len(event["clients"]),
        "failed": len(event["failed"]),
        **private,
    }


def round_line(
    event: Event, num_rounds: int, objective: ObjectiveSpec, levels: Levels | None, learned: str
) -> str:
    """Return the line that the log has for a round; ``learned`` is the verdict on the run so
    far."""
    train, validation, seconds = event["train"], event["validation"], event["seconds"]["round"]
    heard, ahead = "no validation", num_rounds - event["round"]
    if validation:
        beside = f" ({levels})" if levels else ""
        heard = (
            f"validation (round {validation['model_round']}) {said(validation, objective)}{beside}"
        )
    return (
        f"round {event['round']}/{num_rounds}: train {said(train, objective)} | {heard} | "
        f"{len(event['clients'])} of {len(event['asked'])} clients | "
        f"{_opened(event)}{_spent(event)}{_unreadable(event)}{seconds:.1f} s"
        f"{f', about {duration(seconds * ahead)} left' if ahead > 0 else ''}"
        f"{f' | {learned}' if learned else ''}"
    )


def _cut_off(outcome: RoundOutcome) -> dict[str, int]:
    """Return how many entries of updates a ring codec has cut off; nothing with another codec."""
    said = [outcome.pooled, *outcome.clients.values()]
    cut = [int(each["clipped_entries"]) for each in said if "clipped_entries" in each]
    return {"clipped_entries": sum(cut)} if cut else {}


def _opened(event: Event) -> str:
    """Return how a secure sum went."""
    secure = event.get("secure")
    if not secure:
        return ""
    if "skipped" in secure:
        return f"secure: skipped ({secure['skipped']}) | "
    dropped = f", {len(secure['dropped'])} dropped" if secure["dropped"] else ""
    return f"secure: {secure['masked']} masked{dropped}, opened by {secure['helpers']} | "


def _unreadable(event: Event) -> str:
    """Say how many utterances sites could not read and left out."""
    count = sum(client.get("train_unreadable", 0) for client in event["clients"])
    return f"{count} utterances left out as unreadable (see the sites' logs) | " if count else ""


def _spent(event: Event) -> str:
    if "privacy" not in event:
        return ""
    epsilon = event["privacy"]["epsilon"]
    return f"epsilon {'infinite' if epsilon is None else f'{epsilon:.3f}'} | "
