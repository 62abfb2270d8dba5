"""From a round's outcome to the figures that ``metrics.jsonl`` and checkpoints carry."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from fedhubert.clients import Metrics
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.reporting.fairness import fairness
from fedhubert.runs.metrics import Event

LARGEST = 2.0**63
"""No figure of a client is as large."""


def round_event(outcome: RoundOutcome) -> Event:
    """Return the round's line of ``metrics.jsonl``."""
    clients = outcome.clients.values()
    return {
        "event": "round",
        "round": outcome.number,
        "train": {
            "model_round": outcome.number - 1,
            **figures_of(_sums(outcome, "train_")),
            "audio_s": math.fsum(client["train_audio_s"] for client in clients),  # whatever the order
            "steps": int(sum(client["train_steps"] for client in clients)),
        },
        "validation": validation_figures(outcome, model_round=outcome.number - 1),
        "fairness": fairness_of(outcome),
        "drift": outcome.drift,
        "asked": outcome.asked,
        "clients": per_client(outcome),
        "failed": failed(outcome),
        "bytes_down": outcome.bytes_down,
        "bytes_up": outcome.bytes_up,
        "bytes_down_fp32": outcome.bytes_down_fp32,
        "bytes_up_fp32": outcome.bytes_up_fp32,
        **({"privacy": outcome.privacy} if outcome.privacy else {}),
        "seconds": dict(outcome.seconds),
    }


def final_event(outcome: RoundOutcome, *, num_rounds: int, best_round: int) -> Event:
    """Return the last line of ``metrics.jsonl``: how the final model does on every client's validation split."""
    return {
        "event": "final",
        "round": outcome.number,
        "num_rounds": num_rounds,
        "best_round": best_round,
        "validation": validation_figures(outcome, model_round=outcome.number),
        "fairness": fairness_of(outcome),
        "clients": per_client(outcome),
        "failed": failed(outcome),
    }


def data_summary(partitions: Mapping[int, Metrics]) -> dict[str, int | float]:
    """Return counts over all clients' data."""
    about = partitions.values()
    return {
        "clients": len(about),
        "utterances": int(sum(client["train_utterances"] + client["validation_utterances"] for client in about)),
        "train_audio_s": math.fsum(client["train_audio_s"] for client in about),
        "validation_audio_s": math.fsum(client["validation_audio_s"] for client in about),
    }


def validation_figures(outcome: RoundOutcome, *, model_round: int) -> dict[str, Any]:
    """Return the figures over the validation splits of the clients heard, weighted by frames; empty without any."""
    sums = _sums(outcome, "validation_")
    if not sums.get("masked_frames", sums.get("frames", 0)):
        return {}
    figures = {"model_round": model_round, **figures_of(sums), "clients": len(outcome.clients)}
    own = [figures_of(_sums_of(client, "validation_")) for client in outcome.clients.values()]
    heard = [each for each in own if each.get("masked_frames", each.get("frames"))]
    names = [name for name in ("loss", "masked_accuracy") if name in figures]
    return {**figures, "median": {name: statistics.median(each[name] for each in heard) for name in names}}


def fairness_of(outcome: RoundOutcome) -> dict[str, Any]:
    """Return how evenly the model scored serves the clients heard (see :func:`~fedhubert.reporting.fairness.fairness`): by their masked accuracy,
    or by their loss where there is none."""
    scores = [figures_of(_sums_of(client, "validation_")) for client in outcome.clients.values()]
    scores = [score for score in scores if score.get("masked_frames", score.get("frames"))]
    for figure, better in (("masked_accuracy", True), ("loss", False)):
        values = [score[figure] for score in scores if figure in score]
        if values:
            return {"figure": figure, **fairness(values, higher_is_better=better)}
    return {}


def check_figures(metrics: Mapping[str, int | float]) -> None:
    """Raise ``ValueError`` if a client's numbers are out of range, or no figures can be made of its sums."""
    if not all(abs(value) < LARGEST for value in metrics.values()):  # nor NaN
        raise ValueError("numbers out of range")
    for prefix in ("train_", "validation_"):
        sums = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        if sums:
            try:
                figures_of(sums)
            except KeyError as error:
                raise ValueError(f"no {prefix}{error.args[0]}") from None


def figures_of(sums: Mapping[str, float]) -> dict[str, Any]:
    """Return what is reported of an objective's sums.

    Masked prediction: ``loss`` (nats), ``masked_accuracy``, ``masked_frames``. Distillation: ``loss`` (of all weighted objectives) per frame,
    ``frames``; ``objectives``, each one's mean over its own frames; where layers are predicted ``cosine_distance`` (mean over frames of 1 - cosine)
    and ``relative_l2``, both against the teacher; ``masked_accuracy`` where pseudo-labels are.
    """
    if not sums:
        return {}
    if "cross_entropy_sum" in sums:
        frames = sums["masked_frames"]
        return {
            "loss": _ratio(sums["cross_entropy_sum"], frames),
            "masked_accuracy": _ratio(sums["correct"], frames),
            "masked_frames": int(frames),
        }
    figures: dict[str, Any] = {"loss": _ratio(sums["loss_sum"], sums["frames"]), "frames": int(sums["frames"])}
    names = [name.removesuffix("_frames") for name in sums if name.endswith("_frames")]
    figures["objectives"] = {name: _ratio(sums[f"{name}_sum"], sums[f"{name}_frames"]) for name in names}
    if "cosine_distance_sum" in sums:
        frames = max(sums.get("layers_frames", 0), sums.get("hints_frames", 0))
        figures["cosine_distance"] = _ratio(sums["cosine_distance_sum"], frames)
        figures["relative_l2"] = math.sqrt(sums["error_energy_sum"] / max(sums["teacher_energy_sum"], 1e-30))
    if "correct" in sums:
        figures["masked_accuracy"] = _ratio(sums["correct"], sums["pseudo_labels_frames"])
    return figures


def said(figures: Mapping[str, Any]) -> str:
    """Return the figures in a few words."""
    words = {"loss": "loss", "masked_accuracy": "accuracy", "cosine_distance": "distance"}
    return " ".join(f"{word} {figures[name]:.4f}" for name, word in words.items() if name in figures)


def _sums(outcome: RoundOutcome, prefix: str) -> dict[str, float]:
    """Add the clients' figures up, in partition order, so that sums do not depend on who answered first."""
    sums: dict[str, float] = {}
    for partition in sorted(outcome.clients):
        for name, value in _sums_of(outcome.clients[partition], prefix).items():
            sums[name] = sums.get(name, 0) + value
    return sums


def _sums_of(client: Metrics, prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in client.items() if name.startswith(prefix)}


def per_client(outcome: RoundOutcome) -> list[dict[str, Any]]:
    return [{"partition": partition, **outcome.clients[partition]} for partition in sorted(outcome.clients)]


def failed(outcome: RoundOutcome) -> list[dict[str, Any]]:
    ordered = sorted(outcome.failures, key=lambda failure: (failure.partition, failure.code))
    return [{"partition": item.partition, "code": item.code, "setting": item.setting} for item in ordered]


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator) / max(1.0, float(denominator))


def brief(event: Event, *, clients_figures: bool = True) -> Event:
    """The part of a round's event that checkpoints carry: no timings, so that equal runs have equal checkpoints.

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


def round_line(event: Event, num_rounds: int) -> str:
    """Return the line that the log has for a round."""
    train, validation, seconds = event["train"], event["validation"], event["seconds"]["round"]
    heard = "no validation"
    if validation:
        heard = f"validation (round {validation['model_round']}) {said(validation)}"
    return (
        f"round {event['round']}/{num_rounds}: train {said(train)} | {heard} | "
        f"{len(event['clients'])} of {len(event['asked'])} clients | {_spent(event)}{seconds:.1f} s, "
        f"about {_duration(seconds * (num_rounds - event['round']))} left"
    )


def _spent(event: Event) -> str:
    if "privacy" not in event:
        return ""
    epsilon = event["privacy"]["epsilon"]
    return f"epsilon {'infinite' if epsilon is None else f'{epsilon:.3f}'} | "


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min {rest:02d} s"
        if minutes
        else f"{rest} s"
    )
