"""The report's pictures, as SVG that stands inside the page: one plot each, so that a narrow window
stacks them."""

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedhubert.reporting.curves import colour, draw_training, label, line
from fedhubert.reporting.report_data import RunData

if TYPE_CHECKING:  # matplotlib takes a second, and is imported when a figure is drawn
    from matplotlib.axes import Axes

_LONGEST = 44
"""Characters of a name in a legend; the middle of a longer one is left out."""


def curves(runs: Sequence[RunData]) -> list[str]:
    """Loss and masked accuracy by round."""

    def loss(axes: "Axes") -> None:
        draw_training(axes, runs, "loss", "entropy_nats")
        label(axes, "masked loss", "round", "nats a masked frame")

    def accuracy(axes: "Axes") -> None:
        draw_training(axes, runs, "masked_accuracy", "most_frequent_share")
        label(axes, "masked accuracy", "round", "share of masked frames")

    return _pictures("Loss and masked accuracy by round", loss, accuracy)


def distances(runs: Sequence[RunData]) -> list[str]:
    """How far students are from their teachers, by round."""

    def cosine(axes: "Axes") -> None:
        draw_training(axes, runs, "cosine_distance")
        label(axes, "cosine distance", "round", "1 - cosine")

    def relative(axes: "Axes") -> None:
        draw_training(axes, runs, "relative_l2")
        label(axes, "relative L2 distance", "round", "of the teacher's norm")

    return _pictures("Distance to the teacher by round", cosine, relative)


def clients(runs: Sequence[RunData]) -> list[str]:
    """Each client's masked accuracy under the last model, sorted; and the worst and best client of
    each round."""

    def sorted_clients(axes: "Axes") -> None:
        for number, run in enumerate(runs):
            last = sorted(score.masked_accuracy for score in run.last_scores().values())
            if last:
                share = [(place + 0.5) / len(last) for place in range(len(last))]
                axes.plot(last, share, "o-", ms=3, color=colour(number), label=run.name)
        title = "clients at or below an accuracy (last model)"
        label(axes, title, "masked accuracy", "share of clients", whole=False)

    def spread(axes: "Axes") -> None:
        for number, run in enumerate(runs):
            between = {
                model: (min(values), max(values))
                for model, scores in run.client_scores()
                if (values := [score.masked_accuracy for score in scores.values()])
            }
            rounds = sorted(between)
            if rounds:
                low, high = zip(*(between[model] for model in rounds), strict=True)
                tint = colour(number)
                axes.fill_between(rounds, low, high, color=tint, alpha=0.15, linewidth=0)
                axes.plot(rounds, low, color=tint, linewidth=1.5, label=f"{run.name}: worst client")
        label(axes, "worst to best client of each round", "round", "masked accuracy")

    return _pictures("Distribution over clients", sorted_clients, spread)


def drift(runs: Sequence[RunData]) -> list[str]:
    """By round: norms of clients' updates (solid) and of their mean (dashed); cosines of two
    clients' updates (solid), and of each client's to the mean (dashed: the mean over clients;
    shaded: from the lowest to the highest)."""

    def norms(axes: "Axes") -> None:
        for number, run in enumerate(runs):
            line(axes, run.drift("update_norm"), number, label=run.name)
            line(axes, run.drift("mean_update_norm"), number, linestyle="--")
        label(axes, "norm of updates and of their mean", "round", "L2 norm")

    def cosines(axes: "Axes") -> None:
        for number, run in enumerate(runs):
            line(axes, run.drift("pairwise_cosine"), number, label=run.name)
            line(axes, run.drift("cosine_to_mean"), number, linestyle="--")
            if found := run.cosines():
                rounds, values = zip(*found, strict=True)
                low, high = list(map(min, values)), list(map(max, values))
                axes.fill_between(rounds, low, high, color=colour(number), alpha=0.15, linewidth=0)
        label(axes, "two clients' updates, each to the mean", "round", "cosine")

    return _pictures("Drift of the clients by round", norms, cosines)


def costs(runs: Sequence[RunData]) -> list[str]:
    """Bytes sent so far, and seconds by phase."""

    def sent(axes: "Axes") -> None:
        for number, run in enumerate(runs):
            down, up = run.bytes_sent()
            line(axes, [(x, y / 1e6) for x, y in down], number, label=f"{run.name}: down")
            ups = [(x, y / 1e6) for x, y in up]
            line(axes, ups, number, linestyle="--", label=f"{run.name}: up")
        label(axes, "sent so far", "round", "MB")

    def spent(axes: "Axes") -> None:
        phases = list(dict.fromkeys(phase for run in runs for phase in run.seconds()))
        names, begun = [_short(run.name) for run in runs], [0.0] * len(runs)
        for place, phase in enumerate(phases):
            seconds = [run.seconds().get(phase, 0.0) for run in runs]
            named = phase.replace("_", " ")
            axes.barh(names, seconds, left=begun, color=colour(place), height=0.6, label=named)
            begun = [before + more for before, more in zip(begun, seconds, strict=True)]
        axes.invert_yaxis()
        label(axes, "time of all rounds by phase", "seconds", "run", whole=False)

    return _pictures("Bytes and time", sent, spent)


def points(figure: str, systems: Sequence[tuple[str, Sequence[float], float, float]]) -> str:
    """Draw a figure of a comparison: each model's value with every seed, their mean and its
    interval.

    Args:
        systems: Name, values by seed, mean, half the interval.
    """

    def draw(axes: "Axes") -> None:
        for place, (_, values, mean, half) in enumerate(systems):
            axes.errorbar(place, mean, half, color=colour(0), marker="_", ms=14, capsize=4)
            axes.plot([place + 0.18] * len(values), values, "o", ms=4, color=colour(1), alpha=0.7)
        axes.set_xticks(
            range(len(systems)), [name for name, *_ in systems], rotation=20, ha="right"
        )
        label(axes, figure, "model", figure, whole=False)

    return _pictures(f"Comparison: {figure}", draw)[0]


def _pictures(title: str, *draws: Callable[["Axes"], None]) -> list[str]:
    return [_picture(f"{title} ({number})", draw) for number, draw in enumerate(draws, start=1)]


def _picture(title: str, draw: Callable[["Axes"], None]) -> str:
    """Draw a plot, its legend below it, and return it as an SVG that scales with the page."""
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
        figure, axes = pyplot.subplots(figsize=(5.4, 3.7), constrained_layout=True)
        draw(axes)
        handles, names = axes.get_legend_handles_labels()
        if handles:
            columns = 1 if max(map(len, names)) > _LONGEST // 2 else 3
            figure.legend(
                handles,
                [_short(name) for name in names],
                loc="outside lower center",
                ncols=columns,
                fontsize=8,
                frameon=False,
            )
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


def _short(name: str) -> str:
    half = _LONGEST // 2 - 1
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}"
