"""The report's figures, as SVG that stands inside the page."""

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from fedhubert.reporting.report_data import RunData
from fedhubert.reporting.summary import MANY_ROUNDS, trend

if TYPE_CHECKING:  # matplotlib takes a second, and is imported when a figure is drawn
    from matplotlib.axes import Axes


class Style(TypedDict, total=False):
    """How a curve is drawn, in matplotlib's words."""

    linestyle: str
    alpha: float
    marker: str | None
    label: str


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Okabe and Ito's palette, which readers with colour vision deficiencies can tell apart."""


def curves(runs: Sequence[RunData]) -> str:
    """Loss and masked accuracy by round: dashed while training, solid on validation splits; dotted,
    what ignoring the input gives."""

    def draw(left: "Axes", right: "Axes") -> None:
        for axes, figure, level, title in (
            (left, "loss", "entropy_nats", "masked loss (nats)"),
            (right, "masked_accuracy", "most_frequent_share", "masked accuracy"),
        ):
            for number, run in enumerate(runs):
                _line(axes, run.training(figure), number, linestyle="--", alpha=0.6)
                _line(axes, run.validation(figure), number, marker="o", label=run.name)
                labels = run.targets.get("validation_labels") or {}
                if level in labels:
                    axes.axhline(labels[level], color=_colour(number), linestyle=":", linewidth=1)
            _finish(axes, title, "round")
            _legend(axes)

    return _figure("Loss and masked accuracy by round", draw)


def distances(runs: Sequence[RunData]) -> str:
    """How far students are from their teachers, by round: dashed while training, solid on
    validation splits."""

    def draw(left: "Axes", right: "Axes") -> None:
        for axes, figure, title in (
            (left, "cosine_distance", "1 - cosine"),
            (right, "relative_l2", "relative L2 distance"),
        ):
            for number, run in enumerate(runs):
                _line(axes, run.training(figure), number, linestyle="--", alpha=0.6)
                _line(axes, run.validation(figure), number, marker="o", label=run.name)
            _finish(axes, title, "round")
            _legend(axes)

    return _figure("Distance to the teacher by round", draw)


def clients(runs: Sequence[RunData]) -> str:
    """Each client's masked accuracy under the last model, sorted; and the worst and best client of
    each round."""

    def draw(left: "Axes", right: "Axes") -> None:
        for number, run in enumerate(runs):
            last = sorted(score.masked_accuracy for score in run.last_scores().values())
            if last:
                share = [(place + 0.5) / len(last) for place in range(len(last))]
                left.plot(last, share, "o-", ms=3, color=_colour(number), label=run.name)
            spread = {
                model: (min(values), max(values))
                for model, scores in run.client_scores()
                if (values := [score.masked_accuracy for score in scores.values()])
            }
            rounds = sorted(spread)
            if rounds:
                low, high = zip(*(spread[model] for model in rounds), strict=True)
                right.fill_between(
                    rounds, low, high, color=_colour(number), alpha=0.15, linewidth=0
                )
                right.plot(
                    rounds,
                    low,
                    color=_colour(number),
                    linewidth=1.5,
                    label=f"{run.name}: worst client",
                )
        _finish(
            left, "clients at or below an accuracy (last model)", "masked accuracy", whole=False
        )
        _finish(right, "worst to best client of each round", "round")
        _legend(left)
        _legend(right)

    return _figure("Distribution over clients", draw)


def drift(runs: Sequence[RunData]) -> str:
    """By round: norms of clients' updates (solid) and of their mean (dashed); cosines of two
    clients' updates (solid), and of each client's to the mean (dashed: the mean over clients;
    shaded: from the lowest to the highest)."""

    def draw(left: "Axes", right: "Axes") -> None:
        for number, run in enumerate(runs):
            _line(left, run.drift("update_norm"), number, label=run.name)
            _line(left, run.drift("mean_update_norm"), number, linestyle="--")
            _line(right, run.drift("pairwise_cosine"), number, label=run.name)
            _line(right, run.drift("cosine_to_mean"), number, linestyle="--")
            if cosines := run.cosines():
                rounds, values = zip(*cosines, strict=True)
                low, high = map(min, values), map(max, values)
                right.fill_between(
                    rounds, list(low), list(high), color=_colour(number), alpha=0.15, linewidth=0
                )
        _finish(left, "norm of updates and of their mean", "round")
        _finish(right, "cosines: two clients' updates, each to the mean", "round")
        _legend(left)
        _legend(right)

    return _figure("Drift of the clients by round", draw)


def costs(runs: Sequence[RunData]) -> str:
    """Bytes sent so far, and seconds by phase."""

    def draw(left: "Axes", right: "Axes") -> None:
        for number, run in enumerate(runs):
            down, up = run.bytes_sent()
            _line(left, [(x, y / 1e6) for x, y in down], number, label=f"{run.name}: down")
            _line(
                left, [(x, y / 1e6) for x, y in up], number, linestyle="--", label=f"{run.name}: up"
            )
        phases = list(dict.fromkeys(phase for run in runs for phase in run.seconds()))
        begun = [0.0] * len(runs)
        for place, phase in enumerate(phases):
            spent = [run.seconds().get(phase, 0.0) for run in runs]
            right.barh(
                [run.name for run in runs],
                spent,
                left=begun,
                color=_colour(place),
                height=0.6,
                label=phase.replace("_", " "),
            )
            begun = [before + more for before, more in zip(begun, spent, strict=True)]
        right.invert_yaxis()
        _finish(left, "sent so far (MB)", "round")
        _finish(right, "time of all rounds by phase", "seconds", whole=False)
        _legend(left)
        if phases:  # below, since bars fill the panel
            right.legend(
                fontsize=8,
                frameon=False,
                ncol=len(phases),
                loc="upper center",
                bbox_to_anchor=(0.5, -0.15),
            )

    return _figure("Bytes and time", draw)


def _figure(title: str, draw: Callable[["Axes", "Axes"], None]) -> str:
    """Draw two panels and return them as an SVG that scales with the page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    salt = re.sub(r"\W", "", title)  # keeps the ids of figures on one page apart
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "font.size": 9,
            "font.family": "sans-serif",
            "text.parse_math": False,
        }
    ):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
        draw(left, right)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    body = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    return re.sub(
        r'<svg\b([^>]*?) width="[^"]*"',
        rf'<svg role="img" aria-label="{title}"\1',
        re.sub(r' height="[^"]*pt"', "", body, count=1),
        count=1,
    )


def _line(
    axes: "Axes", points: Sequence[tuple[float, float]], number: int, **style: Unpack[Style]
) -> None:
    """Draw a curve; of many rounds as a running mean, over the values themselves where the line is
    solid."""
    if len(points) > MANY_ROUNDS:
        if "linestyle" not in style:
            axes.plot(*zip(*points, strict=True), color=_colour(number), linewidth=0.5, alpha=0.25)
        points = trend(points)
        style["marker"] = None
    if points:
        axes.plot(*zip(*points, strict=True), color=_colour(number), ms=3, linewidth=1.3, **style)


def _finish(axes: "Axes", title: str, label: str, *, whole: bool = True) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if whole:
        axes.locator_params(axis="x", integer=True)


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
