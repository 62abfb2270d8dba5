"""The end of a run: a table of its rounds and a plot of its curves, both made from
``metrics.jsonl`` alone."""

import math
from collections.abc import Sequence
from pathlib import Path

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


def rounds_table(metrics_file: Path) -> Table:
    """Return one row per round: training and validation loss and masked accuracy of the round's
    model (of a student: its distance to the teacher; of fine-tuning: accuracy, or word error
    rate), clients, seconds. Of many rounds only every
    n-th, and the last."""
    events = list(read_events(metrics_file))
    validation = validation_by_round(events)
    second, _, short = second_figure(events)
    table = Table(title="Rounds")
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
        table.add_column(name, justify="right")
    rounds = [event for event in events if event.get("event") == "round"]
    every = -(-len(rounds) // _MOST_ROWS) if rounds else 1
    for event in rounds:
        if event["round"] % every and event is not rounds[-1]:
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
    final = final_event(metrics_file)
    scores = [event.get("validation") or {} for event in [*rounds, *([final] if final else [])]]
    levels = Levels.of(targets_of(events))
    number = final.get("num_rounds", len(rounds))
    if learned := verdict(scores, levels, number):
        table.caption = f"{levels} by ignoring the input; {learned}"
    return table


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
MANY_ROUNDS = 60
"""Curves of more show their trend."""


def trend(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the running mean of ``points`` (x, y) over a thirtieth of them around each; at the
    ends over as many as there are."""
    half = max(1, len(points) // 60)
    values = [y for _, y in points]
    around = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [(x, math.fsum(near) / len(near)) for (x, _), near in zip(points, around, strict=True)]


_LOSSES = {"masked_accuracy": "masked loss (nats)", "cosine_distance": "distillation loss"}
"""What the loss is called beside which second figure."""


def plot_curves(metrics_file: Path, out: Path) -> None:
    """Draw loss and masked accuracy per round, with the two levels that a model must pass to have
    learned anything: the entropy of the labels' unigram distribution and the share of the most
    frequent label. Of a student: its loss and its distance to the teacher."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    events = list(read_events(metrics_file))
    rounds = [event for event in events if event.get("event") == "round"]
    validation = sorted(validation_by_round(events).items())
    levels = targets_of(events).get("validation_labels", {})
    second, second_name, _ = second_figure(events)
    loss_name = _LOSSES.get(second, "loss (nats)")
    figure, (loss, accuracy) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for axis, key, level, name, line in (
        (loss, "loss", "entropy_nats", loss_name, "unigram entropy"),
        (accuracy, second, "most_frequent_share", second_name, "most frequent label"),
    ):
        training = [(event["round"], event["train"].get(key, math.nan)) for event in rounds]
        scored = [(number, figures.get(key, math.nan)) for number, figures in validation]
        for points, style, label in (
            (training, "o-", "train (during the round)"),
            (scored, "s-", "validation (round's model)"),
        ):
            if len(points) > MANY_ROUNDS:
                points, style, label = trend(points), "-", f"{label}, running mean"
            axis.plot(*zip(*points, strict=True) if points else ([], []), style, ms=3, label=label)
        if level in levels and second == "masked_accuracy":
            axis.axhline(levels[level], color="grey", linestyle=":", label=line)
        axis.set_xlabel("round")
        axis.set_title(name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
