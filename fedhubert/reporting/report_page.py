"""The page of a report: one HTML file with its style and figures inside, nothing fetched.

What a section says is put together here; how it looks is ``templates/report.html``.
"""

from collections.abc import Sequence
from statistics import median

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedhubert.durations import duration
from fedhubert.reporting import report_plots
from fedhubert.reporting.curves import MANY_ROUNDS
from fedhubert.reporting.fairness import fairness
from fedhubert.reporting.report_about import settings, starts
from fedhubert.reporting.report_comparison import comparisons
from fedhubert.reporting.report_data import RunData
from fedhubert.reporting.report_files import all_settings
from fedhubert.reporting.report_parts import Section, Table, decimal
from fedhubert.reporting.report_privacy import HEAD as PRIVACY_HEAD
from fedhubert.reporting.report_privacy import privacy_rows
from fedhubert.reporting.report_results import evaluations
from fedhubert.reporting.report_secure import HEAD, secure_rows

MAX_CLIENTS = 40
"""Rows of a table of clients; of more, those with most failures and then the lowest accuracy are
shown."""
NAMED = 3
"""Runs that the page's title names."""


def render(runs: Sequence[RunData]) -> str:
    """Return the page of one or more runs; what runs lack is left out."""
    trained = [run for run in runs if run.events]  # a comparison's folder is none itself
    sections = (
        _summary(trained),
        comparisons(runs),
        _curves(trained),
        _clients(trained),
        _drift(trained),
        _participation(trained),
        _secure(trained),
        _privacy(trained),
        _costs(trained),
        evaluations(runs),
        starts(runs),
        settings(runs),
    )
    templates = Environment(
        loader=PackageLoader("fedhubert.reporting"), autoescape=True, undefined=StrictUndefined
    )
    names = ", ".join(run.name for run in runs) if len(runs) <= NAMED else f"{len(runs)} runs"
    return templates.get_template("report.html").render(
        names=names, sections=[found for found in sections if found]
    )


_TUNED = {"accuracy": "accuracy", "macro_f1": "macro F1", "wer": "WER", "cer": "CER"}
"""Figures of fine-tuning, and what they are called."""


def _summary(runs: Sequence[RunData]) -> Section:
    students = any(run.validation("cosine_distance") for run in runs)
    tuned = [name for name in _TUNED if any(run.validation(name) for run in runs)]
    rows = []
    for run in runs:
        loss, accuracy = run.validation("loss"), run.validation("masked_accuracy")
        labels = run.targets.get("validation_labels") or {}
        down, up = run.bytes_sent()
        sent = (down[-1][1] + up[-1][1]) / 1e6 if down else 0.0
        state = "finished" if run.final else "not finished"
        rows.append(
            [
                run.name,
                run.kind.replace("_", " "),
                f"{len(run.rounds)} ({state})",
                decimal(loss[-1][1] if loss else None),
                decimal(labels.get("entropy_nats")),
                decimal(accuracy[-1][1] if accuracy else None),
                decimal(labels.get("most_frequent_share")),
                *([_first_and_last(run.validation("cosine_distance"))] if students else []),
                *(_first_and_last(run.validation(name)) for name in tuned),
                f"{run.total('audio_s') / 3600:.2f}",
                f"{sent:.1f}",
                duration(sum(run.seconds().values())),
            ]
        )
    head = [
        *("run", "kind", "rounds", "loss", "unigram entropy"),
        *("masked accuracy", "most frequent label"),
        *(["distance to the teacher (1 - cosine, first and last)"] if students else []),
        *(f"{_TUNED[name]} (first and last)" for name in tuned),
        *("audio (h)", "sent (MB)", "time"),
    ]
    note = (
        "Loss (nats) and masked accuracy are of the last model that was scored, on the clients' "
        "validation splits. "
        "A model that ignores its input has the unigram entropy and the most frequent label."
    )
    own = [run.name for run in runs if dict(all_settings([run])).get("task.head") == ["personal"]]
    if own:
        note += (
            f" {', '.join(own)}: the encoder alone is shared (task.head=personal), and figures "
            "are those of each client's own head on it."
        )
    tables = [Table(head, rows)] if rows else []
    return Section("Summary", tables=tables, note=note, warnings=_other_clusters(runs))


def _other_clusters(runs: Sequence[RunData]) -> list[str]:
    """Warn of runs whose labels are not those of the first that has any."""
    keys = {run.name: str(run.targets["key"]) for run in runs if run.targets.get("key")}
    first = next(iter(keys), "")
    others = [name for name, key in keys.items() if key != keys[first]]
    if not others:
        return []
    return [
        f"{', '.join(others)}: other clusters than {first}. Losses and accuracies under different "
        "pseudo-labels cannot be compared."
    ]


def _first_and_last(series: Sequence[tuple[int, float]]) -> str:
    return f"{decimal(series[0][1])}, {decimal(series[-1][1])}" if series else ""


def _curves(runs: Sequence[RunData]) -> Section | None:
    if not any(run.rounds for run in runs):
        return None
    note = (
        "Solid: on the clients' validation splits, by the round of the model. Dashed: while "
        "training. Dotted: what ignoring the input gives. "
        f"Curves of more than {MANY_ROUNDS} rounds are running means, with the values themselves "
        "behind them."
    )
    figures = report_plots.curves(runs)
    if any(run.validation("cosine_distance") for run in runs):
        figures += report_plots.distances(runs)
    return Section("Curves", figures, note=note)


def _clients(runs: Sequence[RunData]) -> Section | None:
    rows = []
    for run in runs:
        scores = run.last_scores()
        if not scores:
            continue
        accuracies = [score.masked_accuracy for score in scores.values()]
        even = fairness(accuracies)
        worst = min(scores, key=lambda number: (scores[number].masked_accuracy, number))
        best = max(scores, key=lambda number: (scores[number].masked_accuracy, -number))
        rows.append(
            [
                run.name,
                str(len(scores)),
                decimal(median(accuracies)),
                *(decimal(even[name]) for name in ("mean", "worst_decile", "spread")),
                f"client {worst}: {decimal(scores[worst].masked_accuracy)}",
                decimal(scores[worst].loss),
                f"client {best}: {decimal(scores[best].masked_accuracy)}",
                decimal(max(accuracies) - min(accuracies)),
            ]
        )
    head = [
        *("run", "clients", "median accuracy", "mean", "mean of the worst tenth"),
        *("standard deviation", "worst client", "its loss", "best client", "gap"),
    ]
    return Section("Clients", report_plots.clients(runs), [Table(head, rows)]) if rows else None


def _drift(runs: Sequence[RunData]) -> Section | None:
    if not any(run.drift("update_norm") or run.cosines() for run in runs):
        return None
    note = (
        "First: the norm of clients' updates (solid, weighted mean) and of their mean (dashed). "
        "Second: the mean cosine of two clients' updates in a "
        "round, weighted by their norms (solid): 1, they agree; 0, the mean is as short as that of "
        "unrelated directions. The cosine of each update "
        "to the mean (from sketches, give or take 0.016): mean over clients (dashed), lowest to "
        "highest (shaded); n unrelated updates of one length "
        "have 1/sqrt(n). Each client's own is in the next table."
    )
    return Section("Drift", report_plots.drift(runs), note=note)


def _participation(runs: Sequence[RunData]) -> Section | None:
    tables = [table for run in runs if run.rounds and (table := _participation_of(run))]
    return Section("Participation and failures", tables=tables) if tables else None


def _participation_of(run: RunData) -> Table | None:
    asked, used, failures = run.participation()
    numbers = sorted(set(asked) | set(used) | {number for number, _ in failures})
    if not numbers:
        return None
    scores = run.last_scores()
    failed = {
        number: sum(count for (client, _), count in failures.items() if client == number)
        for number in numbers
    }
    norms, cosines = run.updates("update_norm"), run.updates("cosine_to_mean")
    accuracy = {
        number: scores[number].masked_accuracy if number in scores else 1.0 for number in numbers
    }
    shown = sorted(
        sorted(numbers, key=lambda number: (-failed[number], accuracy[number], number))[
            :MAX_CLIENTS
        ]
    )
    rows = []
    for number in shown:
        codes = ", ".join(
            f"{code} ({count})"
            for (client, code), count in sorted(failures.items())
            if client == number
        )
        name = "whole node" if number < 0 else f"client {number}"
        score = decimal(accuracy[number]) if number in scores else ""
        norm = f"{norms[number]:.4g}" if number in norms else ""
        counts = [str(count[number]) for count in (asked, used, failed)]
        rows.append([name, *counts, codes, score, norm, decimal(cosines.get(number))])
    total = (
        f"{sum(used.values())} updates used of {sum(asked.values())} asked, "
        f"{sum(failures.values())} failures"
    )
    note = f"; {len(shown)} of {len(numbers)} clients shown" if len(shown) < len(numbers) else ""
    head = [
        *("client", "rounds asked", "updates used", "failures", "codes"),
        *("last masked accuracy", "mean update norm", "mean cosine to the mean update"),
    ]
    return Table(head, rows, heading=f"{run.name}: {total}{note}", folded=not failures)


def _secure(runs: Sequence[RunData]) -> Section | None:
    rows = secure_rows(runs)
    note = (
        "The server saw sums over the clients of a round, and no client's own update, loss or "
        "weight."
    )
    return Section("Secure sums", tables=[Table(HEAD, rows)], note=note) if rows else None


def _privacy(runs: Sequence[RunData]) -> Section | None:
    rows = privacy_rows(runs)
    note = "Epsilon is of the models; the figures of this report are exact, and outside it."
    return (
        Section("Differential privacy", tables=[Table(PRIVACY_HEAD, rows)], note=note)
        if rows
        else None
    )


def _costs(runs: Sequence[RunData]) -> Section | None:
    rows = []
    for run in runs:
        if not run.rounds:
            continue
        down, up = run.bytes_sent()
        full = sum(
            float(event.get(name) or 0)
            for event in run.rounds
            for name in ("bytes_down_fp32", "bytes_up_fp32")
        )
        sent = down[-1][1] + up[-1][1]
        phases = ", ".join(
            f"{phase.replace('_', ' ')} {duration(seconds)}"
            for phase, seconds in run.seconds().items()
        )
        count = len(run.rounds)
        share = f"{sent / full:.1%}" if full else ""
        megabytes = [f"{total[-1][1] / count / 1e6:.2f}" for total in (down, up)]
        rows.append([run.name, *megabytes, share, phases])
    head = ["run", "MB down a round", "MB up a round", "of what fp32 would send"]
    table = Table([*head, "time of all rounds"], rows)
    return Section("Bytes and time", report_plots.costs(runs), [table]) if rows else None
