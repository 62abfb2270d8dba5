"""The end of a run: a table of its rounds, made from ``metrics.jsonl`` alone."""

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedhubert.reporting.learning import Levels, verdict
from fedhubert.runs.metrics import Event, read_events


def validation_by_round(events: list[Event]) -> dict[int, Event]:
    """Return model round -> federated validation figures (round r's arrive with round r + 1, the
    last with the final evaluation)."""
    return {
        event["validation"]["model_round"]: event["validation"]
        for event in events
        if event.get("validation")
    }


@dataclass(frozen=True)
class Ending:
    """How a run ended, in words: loss and :func:`second_figure` of its last model on the held-out
    audio, and whether it has learned; empty where it has not come to its end."""

    loss: str = ""
    second: str = ""
    learned: str = ""


def how_it_ended(metrics_file: Path) -> Ending:
    """Return how the run of ``metrics.jsonl`` ended."""
    events = list(read_events(metrics_file))
    scored = final_event(metrics_file).get("validation") or {}
    if not scored:
        return Ending()
    return Ending(
        _figure(scored.get("loss")), _figure(scored.get(second_figure(events)[0])), _learned(events)
    )


def rounds_table(metrics_file: Path) -> Table:
    """Return one row per round: training and validation loss and masked accuracy of the round's
    model (of a student: its distance to the teacher; of fine-tuning: accuracy, or word error rate),
    clients, seconds. Of many rounds only every n-th, and the last; of rounds that are scored now
    and then, those whose model was."""
    events = list(read_events(metrics_file))
    validation = validation_by_round(events)
    second, _, short = second_figure(events)
    table = Table(title="Rounds", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in (
        "round",
        "train loss",
        f"train {short}",
        "valid loss",
        f"valid {short}",
        "clients",
        "failed",
        "audio s",
        "seconds",
    ):
        table.add_column(name, justify="right", no_wrap=" " not in name)
    rounds = [event for event in events if event.get("event") == "round"]
    shown = [event for event in rounds if event["round"] in validation]
    shown = shown if 0 < 2 * len(shown) < len(rounds) else rounds
    every = -(-len(shown) // _MOST_ROWS) if shown else 1
    last = [] if shown[-1:] == rounds[-1:] else rounds[-1:]
    for number, event in enumerate([*shown, *last], start=1):
        if number % every and event is not rounds[-1]:
            continue
        scored = validation.get(event["round"], {})
        train = event["train"]
        table.add_row(
            str(event["round"]),
            _figure(train.get("loss")),
            _figure(train.get(second)),
            _figure(scored.get("loss")),
            _figure(scored.get(second)),
            f"{len(event['clients'])}/{len(event['asked'])}",
            str(len(event["failed"])),
            f"{train['audio_s']:.0f}",
            f"{event['seconds']['round']:.1f}",
        )
    if learned := _learned(events):
        table.caption = f"{Levels.of(targets_of(events))} by ignoring the input; {learned}"
    return table


def _learned(events: list[Event]) -> str:
    """Return the verdict on a run from its events."""
    told = [event for event in events if event.get("event") in ("round", "final")]
    scores = [event.get("validation") or {} for event in told]
    final = next((event for event in told if event["event"] == "final"), {})
    number = final.get("num_rounds", len(told))
    return verdict(scores, Levels.of(targets_of(events)), number)


def second_figure(events: list[Event]) -> tuple[str, str, str]:
    """Return the figure to show beside the loss: its key, its name, and a short one."""
    rounds = [event["train"] for event in events if event.get("event") == "round"]
    if any("cosine_distance" in train for train in rounds):
        return "cosine_distance", "cosine distance to the teacher", "dist"
    if any("accuracy" in train for train in rounds):
        return "accuracy", "accuracy", "acc"
    if any("wer" in (event.get("validation") or {}) for event in events):
        return "wer", "word error rate", "WER"
    return "masked_accuracy", "masked accuracy", "acc"


def final_event(metrics_file: Path) -> Event:
    """Return the event of the final evaluation, or an empty one when the run has not come to it."""
    events = [event for event in read_events(metrics_file) if event.get("event") == "final"]
    return events[-1] if events else {}


def targets_of(events: list[Event]) -> Event:
    """Return the event that describes the pseudo-labels, or an empty one."""
    return next((event for event in reversed(events) if event.get("event") == "targets"), {})


_MOST_ROWS = 50


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
