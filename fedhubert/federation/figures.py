"""From a round's outcome to the figures that ``metrics.jsonl`` and checkpoints carry."""

from typing import Any

from fedhubert.federation.folding import RoundOutcome
from fedhubert.reporting.metrics import Event


def round_event(outcome: RoundOutcome) -> Event:
    """Return the round's line of ``metrics.jsonl``."""
    totals = {
        name: sum(client[name] for client in outcome.clients.values())
        for name in ("train_masked_frames", "train_audio_s", "train_steps")
    }
    return {
        "event": "round",
        "round": outcome.number,
        "train": {
            "model_round": outcome.number - 1,
            "loss": _ratio(outcome, "train_cross_entropy_sum", "train_masked_frames"),
            "masked_accuracy": _ratio(outcome, "train_correct", "train_masked_frames"),
            "masked_frames": int(totals["train_masked_frames"]),
            "audio_s": float(totals["train_audio_s"]),
            "steps": int(totals["train_steps"]),
        },
        "validation": validation_figures(outcome, model_round=outcome.number - 1),
        "asked": outcome.asked,
        "clients": per_client(outcome),
        "failed": failed(outcome),
        "bytes_down": outcome.bytes_down,
        "bytes_up": outcome.bytes_up,
        "bytes_down_fp32": outcome.bytes_down_fp32,
        "bytes_up_fp32": outcome.bytes_up_fp32,
        "seconds": dict(outcome.seconds),
    }


def validation_figures(outcome: RoundOutcome, *, model_round: int) -> dict[str, Any]:
    """Return loss and masked accuracy over the validation splits of the clients heard, weighted by masked frames; empty without any."""
    frames = sum(int(client.get("validation_masked_frames", 0)) for client in outcome.clients.values())
    if not frames:
        return {}
    return {
        "model_round": model_round,
        "loss": _ratio(outcome, "validation_cross_entropy_sum", "validation_masked_frames"),
        "masked_accuracy": _ratio(outcome, "validation_correct", "validation_masked_frames"),
        "masked_frames": frames,
        "clients": len(outcome.clients),
    }


def per_client(outcome: RoundOutcome) -> list[dict[str, Any]]:
    return [{"partition": partition, **outcome.clients[partition]} for partition in sorted(outcome.clients)]


def failed(outcome: RoundOutcome) -> list[dict[str, Any]]:
    ordered = sorted(outcome.failures, key=lambda failure: (failure.partition, failure.code))
    return [{"partition": item.partition, "code": item.code, "setting": item.setting} for item in ordered]


def _ratio(outcome: RoundOutcome, numerator: str, denominator: str) -> float:
    """Sum in partition order, so that the figure does not depend on who answered first."""
    ordered = [outcome.clients[partition] for partition in sorted(outcome.clients)]
    return float(sum(client[numerator] for client in ordered)) / max(1.0, float(sum(client[denominator] for client in ordered)))


def brief(event: Event) -> Event:
    """The part of a round's event that checkpoints carry: no timings, so that equal runs have equal checkpoints."""
    kept = {key: event[key] for key in ("round", "train", "validation", "bytes_down", "bytes_up")}
    return {
        **kept,
        "server_validation": event.get("server_validation"),
        "clients": len(event["clients"]),
        "failed": len(event["failed"]),
    }


def round_line(event: Event, num_rounds: int) -> str:
    """Return the line that the log has for a round."""
    train, validation, seconds = event["train"], event["validation"], event["seconds"]["round"]
    heard = "no validation"
    if validation:
        heard = f"validation (round {validation['model_round']}) loss {validation['loss']:.4f} accuracy {validation['masked_accuracy']:.4f}"
    return (
        f"round {event['round']}/{num_rounds}: train loss {train['loss']:.4f} accuracy {train['masked_accuracy']:.4f} | {heard} | "
        f"{len(event['clients'])} of {len(event['asked'])} clients | {seconds:.1f} s, "
        f"about {_duration(seconds * (num_rounds - event['round']))} left"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min {rest:02d} s"
        if minutes
        else f"{rest} s"
    )
