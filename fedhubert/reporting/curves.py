"""Curves of runs, in the one style that pages and ``curves.png`` have."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from fedhubert.reporting.report_data import RunData
from fedhubert.reporting.summary import second_figure
from fedhubert.runs.metrics import read_events

if TYPE_CHECKING:  # matplotlib takes a second, and is imported when a figure is drawn
    from matplotlib.axes import Axes

MANY_ROUNDS = 60
"""Curves of more show their trend."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Okabe and Ito's palette, which readers with colour vision deficiencies can tell apart."""


class Style(TypedDict, total=False):
    """How a curve is drawn, in matplotlib's words."""

    linestyle: str
    alpha: float
    marker: str | None
    label: str


def draw_training(axes: "Axes", runs: Sequence[RunData], figure: str, level: str = "") -> None:
    """Draw a figure by round: dashed while training, solid on the validation splits; dotted, at
    ``level`` of the labels, what ignoring the input gives."""
    alone = len(runs) == 1
    for number, run in enumerate(runs):
        meanwhile = "while training" if alone else "_"  # which no legend has
        line(axes, run.training(figure), number, linestyle="--", alpha=0.6, label=meanwhile)
        held_out = "held out" if alone else run.name
        line(axes, run.validation(figure), number, marker="o", label=held_out)
        labels = run.targets.get("validation_labels") or {}
        if level in labels:
            axes.axhline(
                labels[level],
                color=colour(number),
                linestyle=":",
                linewidth=1,
                label="ignoring the input" if alone else "_",
            )


def line(
    axes: "Axes", points: Sequence[tuple[float, float]], number: int, **style: Unpack[Style]
) -> None:
    """Draw a curve; of many rounds as a running mean, over the values themselves where the line is
    solid."""
    if len(points) > MANY_ROUNDS:
        if "linestyle" not in style:
            axes.plot(*zip(*points, strict=True), color=colour(number), linewidth=0.5, alpha=0.25)
        points = trend(points)
        style["marker"] = None
    if points:
        axes.plot(*zip(*points, strict=True), color=colour(number), ms=3, linewidth=1.3, **style)


def trend(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the running mean of ``points`` (x, y) over a thirtieth of them around each; at the
    ends over as many as there are."""
    half = max(1, len(points) // 60)
    values = [y for _, y in points]
    around = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [(x, math.fsum(near) / len(near)) for (x, _), near in zip(points, around, strict=True)]


def label(axes: "Axes", title: str, across: str, up: str, *, whole: bool = True) -> None:
    """Name what is drawn and both axes; ``whole``: only whole numbers across."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if whole:
        axes.locator_params(axis="x", integer=True)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


_LOSSES = {
    "masked_accuracy": ("masked loss", "nats a masked frame"),
    "cosine_distance": ("distillation loss", "loss"),
}
"""What the loss is called beside which second figure, and its unit."""
_SHARES = {
    "masked_accuracy": "share of masked frames",
    "cosine_distance": "1 - cosine",
    "accuracy": "share of utterances",
    "wer": "errors a word",
}
"""What the second figure is a share of."""


def plot_curves(metrics_file: Path, out: Path) -> None:
    """Draw loss and masked accuracy of a run by round, with the two levels that a model must pass
    to have learned anything: the entropy of the labels' unigram distribution and the share of the
    most frequent label. Of a student: its loss and its distance to the teacher; of fine-tuning: its
    loss, and accuracy or word error rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    events = list(read_events(metrics_file))
    run = RunData("", metrics_file.parent, events, {}, {}, {})
    second, name, _ = second_figure(events)
    masked = second == "masked_accuracy"
    loss, unit = _LOSSES.get(second, ("loss", "nats"))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    draw_training(left, [run], "loss", "entropy_nats" if masked else "")
    draw_training(right, [run], second, "most_frequent_share" if masked else "")
    label(left, loss, "round", unit)
    label(right, name, "round", _SHARES.get(second, name))
    handles, labels = left.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False
        )
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
