"""The page of a report: one HTML file with its style and figures inside, nothing fetched."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from fedhubert.reporting import report_plots
from fedhubert.reporting.durations import duration
from fedhubert.reporting.fairness import fairness
from fedhubert.reporting.report_data import RunData, config_differences
from fedhubert.reporting.summary import MANY_ROUNDS

MAX_CLIENTS = 40
"""Rows of a table of clients; of more, those with most failures and then the lowest accuracy are
shown."""

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto; padding: 1rem; max-width: 68rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; min-width: 34rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #999; }
p.note, caption { color: #555; font-size: .88rem; text-align: left; } code { font-size: .9em; }
"""


def render(runs: Sequence[RunData]) -> str:
    """Return the page of one or more runs."""
    sections = [
        ("Summary", _summary(runs)),
        ("Curves", _curves(runs)),
        ("Clients", _clients(runs)),
        ("Drift", _drift(runs)),
        ("Participation and failures", _participation(runs)),
        ("Bytes and time", _costs(runs)),
        ("Settings that differ", _settings(runs)),
        ("Probes and clusters", _evaluations(runs)),
        ("Comparison", _comparisons(runs)),
    ]
    body = "".join(
        f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content
    )
    names = escape(", ".join(run.name for run in runs))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>fedhubert: {names}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body><h1>fedhubert: {names}</h1>{body}</body></html>\n'


def _summary(runs: Sequence[RunData]) -> str:
    rows = []
    students = any(run.validation("cosine_distance") for run in runs)
    for run in (run for run in runs if run.events):
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
                _decimal(loss[-1][1] if loss else None),
                _decimal(labels.get("entropy_nats")),
                _decimal(accuracy[-1][1] if accuracy else None),
                _decimal(labels.get("most_frequent_share")),
                *([_first_and_last(run.validation("cosine_distance"))] if students else []),
                f"{run.total('audio_s') / 3600:.2f}",
                f"{sent:.1f}",
                duration(sum(run.seconds().values())),
            ]
        )
    head = [
        "run",
        "kind",
        "rounds",
        "loss",
        "unigram entropy",
        "masked accuracy",
        "most frequent label",
        *(["distance to the teacher (1 - cosine, first and last)"] if students else []),
        "audio (h)",
        "sent (MB)",
        "time",
    ]
    note = "Loss (nats) and masked accuracy are of the last model that was scored, on the clients' validation splits."
    return (
        _table(head, rows)
        + f'<p class="note">{note} A model that ignores its input has the unigram entropy and the most frequent label.</p>'
    )


def _first_and_last(series: Sequence[tuple[int, float]]) -> str:
    return f"{_decimal(series[0][1])}, {_decimal(series[-1][1])}" if series else ""


def _curves(runs: Sequence[RunData]) -> str:
    if not any(run.rounds for run in runs):
        return ""
    note = (
        "Solid: on the clients' validation splits, by the round of the model. Dashed: while training. Dotted: what ignoring the input gives. "
        f"Curves of more than {MANY_ROUNDS} rounds are running means, with the values themselves behind them."
    )
    plots = _plot(report_plots.curves(runs))
    if any(run.validation("cosine_distance") for run in runs):
        plots += _plot(report_plots.distances(runs))
    return plots + f'<p class="note">{note}</p>'


def _clients(runs: Sequence[RunData]) -> str:
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
                _decimal(median(accuracies)),
                *(_decimal(even[name]) for name in ("mean", "worst_decile", "spread")),
                f"client {worst}: {_decimal(scores[worst].masked_accuracy)}",
                _decimal(scores[worst].loss),
                f"client {best}: {_decimal(scores[best].masked_accuracy)}",
                _decimal(max(accuracies) - min(accuracies)),
            ]
        )
    if not rows:
        return ""
    head = [
        "run",
        "clients",
        "median accuracy",
        "mean",
        "mean of the worst tenth",
        "standard deviation",
        "worst client",
        "its loss",
        "best client",
        "gap",
    ]
    return _plot(report_plots.clients(runs)) + _table(head, rows)


def _drift(runs: Sequence[RunData]) -> str:
    if not any(run.drift("update_norm") or run.cosines() for run in runs):
        return ""
    note = (
        "Left: the norm of clients' updates (solid, weighted mean) and of their mean (dashed). Right: the mean cosine of two clients' updates in a "
        "round, weighted by their norms (solid): 1, they agree; 0, the mean is as short as that of unrelated directions. The cosine of each update "
        "to the mean (from sketches, give or take 0.016): mean over clients (dashed), lowest to highest (shaded); n unrelated updates of one length "
        "have 1/sqrt(n). Each client's own is in the next table."
    )
    return _plot(report_plots.drift(runs)) + f'<p class="note">{note}</p>'


def _participation(runs: Sequence[RunData]) -> str:
    return "".join(_participation_of(run) for run in runs if run.rounds)


def _participation_of(run: RunData) -> str:
    asked, used, failures = run.participation()
    numbers = sorted(set(asked) | set(used) | {number for number, _ in failures})
    if not numbers:
        return ""
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
        score = _decimal(accuracy[number]) if number in scores else ""
        norm = f"{norms[number]:.4g}" if number in norms else ""
        counts = [str(count[number]) for count in (asked, used, failed)]
        rows.append([name, *counts, codes, score, norm, _decimal(cosines.get(number))])
    total = f"{sum(used.values())} updates used of {sum(asked.values())} asked, {sum(failures.values())} failures"
    note = f"; {len(shown)} of {len(numbers)} clients shown" if len(shown) < len(numbers) else ""
    head = [
        "client",
        "rounds asked",
        "updates used",
        "failures",
        "codes",
        "last masked accuracy",
        "mean update norm",
        "mean cosine to the mean update",
    ]
    return f"<h3>{escape(run.name)}: {total}{note}</h3>" + _table(head, rows)


def _costs(runs: Sequence[RunData]) -> str:
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
        rows.append(
            [
                run.name,
                f"{down[-1][1] / count / 1e6:.2f}",
                f"{up[-1][1] / count / 1e6:.2f}",
                share,
                phases,
            ]
        )
    if not rows:
        return ""
    head = [
        "run",
        "MB down a round",
        "MB up a round",
        "of what fp32 would send",
        "time of all rounds",
    ]
    return _plot(report_plots.costs(runs)) + _table(head, rows)


def _settings(runs: Sequence[RunData]) -> str:
    if len(runs) < 2:
        return ""
    rows = [[key, *values] for key, values in config_differences(list(runs))]
    if not rows:
        return "<p>None: the runs have the same configuration.</p>"
    return _table(["setting", *(run.name for run in runs)], rows)


def _evaluations(runs: Sequence[RunData]) -> str:
    parts = []
    for run in runs:
        for task, probe in _mapping(run.results.get("probes")).items():
            rows = [
                [
                    row["encoder"],
                    _layer(row),
                    _decimal(row["accuracy"]),
                    _decimal(row.get("majority")),
                ]
                for row in probe.get("rows", [])
            ]
            title = f"{run.name}: probe for {task} ({probe.get('split', '')})"
            parts.append(_table(["features", "layer", "accuracy", "majority"], rows, title))
        for measure, section in _mapping(run.results.get("abx")).items():
            rows = [
                [row["encoder"], _layer(row), *(_abx(row[name]) for name in ("within", "across"))]
                for row in section.get("rows", [])
            ]
            title = f"{run.name}: ABX error, {measure} ({section.get('context', '')} context)"
            head = ["features", "layer", "within speakers", "across speakers"]
            parts.append(_table(head, rows, title))
        for task, clusters in _mapping(run.results.get("clusters")).items():
            rows = [
                [
                    row["encoder"],
                    _layer(row),
                    _decimal(row["pnmi"]),
                    _decimal(row["label_purity"]),
                    _decimal(row["cluster_purity"]),
                ]
                for row in clusters.get("rows", [])
            ]
            title = f"{run.name}: {clusters.get('k', '')} clusters against {task}"
            parts.append(
                _table(["features", "layer", "PNMI", "label purity", "cluster purity"], rows, title)
            )
    return "".join(parts)


def _abx(score: Any) -> str:
    """Say an ABX error rate and its interval."""
    found = _mapping(score)
    between = [_decimal(bound) for bound in found.get("interval") or ()]
    return " ".join([_decimal(found.get("error")), " to ".join(between)]).strip()


def _comparisons(runs: Sequence[RunData]) -> str:
    parts = []
    for run in runs:
        summary = _mapping(run.comparison.get("summary"))
        names = list(dict.fromkeys(name for figures in summary.values() for name in figures))
        rows = [
            [
                system,
                *(
                    f"{figures[name]['mean']:.4f} ± {figures[name]['sd']:.4f}"
                    if name in figures
                    else ""
                    for name in names
                ),
            ]
            for system, figures in summary.items()
            if figures
        ]
        if rows:
            head = ["model", *(name.replace("_", " ") for name in names)]
            parts.append(_table(head, rows, f"{run.name}: mean and standard deviation over seeds"))
    return "".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _plot(svg: str) -> str:
    return f'<div class="wide">{svg}</div>'


def _layer(row: Mapping[str, Any]) -> str:
    return "" if row.get("layer") is None else str(row["layer"])


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _decimal(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""
