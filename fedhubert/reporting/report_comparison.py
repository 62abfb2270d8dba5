"""A comparison over seeds as a paper shows it: means, intervals, and what each seed gave."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from fedhubert.reporting import report_plots
from fedhubert.reporting.report_data import RunData
from fedhubert.reporting.report_parts import Section, Table, decimal
from fedhubert.reporting.report_results import entries

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179),
    *(2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064),
)
"""The 97.5 % quantile of Student's t distribution with 1, 2, ... degrees of freedom."""
_SIZES = ("parameters", "audio_s_per_s")
"""Figures that are of a model's size, and no result."""


def comparisons(runs: Sequence[RunData]) -> Section | None:
    """Return tables and pictures of the comparisons among ``runs``."""
    tables, pictures = [], []
    for run in runs:
        summary = {
            system: dict(entries(figures))
            for system, figures in entries(run.comparison.get("summary"))
            if figures
        }
        names = list(dict.fromkeys(name for figures in summary.values() for name in figures))
        rows = [
            [system, *(_said(figures.get(name, {})) for name in names)]
            for system, figures in summary.items()
        ]
        if not rows:
            continue
        head = ["model", *(name.replace("_", " ") for name in names)]
        caption = f"{run.name}: mean ± standard deviation over seeds (95 % interval of the mean)"
        tables.append(Table(head, rows, caption=caption))
        seeds = list(each_seed([run]))
        head = ["seed", "model", "figure", "value"]
        seen = [[seed, model, name, decimal(value)] for _, seed, model, name, value in seeds]
        if seen:
            tables.append(Table(head, seen, heading=f"{run.name}: each seed", folded=True))
        values: dict[tuple[str, str], list[float]] = {}
        for _, _, model, of, value in seeds:
            values.setdefault((model, of), []).append(value)
        for name in (name for name in names if name not in _SIZES):
            drawn = [
                (
                    system,
                    values.get((system, name), []),
                    _number(figures[name], "mean"),
                    _half_interval(figures[name]) or 0.0,
                )
                for system, figures in summary.items()
                if name in figures
            ]
            pictures.append(report_plots.points(name.replace("_", " "), drawn))
    note = (
        "Bars: the mean and its 95 % interval, by Student's t distribution. Dots: each seed. "
        "All numbers are in the CSV file beside this page."
    )
    return Section("Comparison", pictures, tables, note) if tables else None


def each_seed(runs: Sequence[RunData]) -> Iterator[tuple[str, str, str, str, float]]:
    """Yield (comparison, seed, model, figure, value) of all comparisons among ``runs``."""
    for run in runs:
        for seed, systems in entries(run.comparison.get("seeds")):
            for system, figures in entries(systems):
                for name, value in figures.items():
                    if isinstance(value, (int, float)):
                        yield run.name, seed, system, name, float(value)


def as_csv(runs: Sequence[RunData]) -> str:
    """Return all figures of comparisons with each seed as CSV; empty without any."""
    rows = list(each_seed(runs))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("comparison", "seed", "model", "figure", "value"))
    writer.writerows(rows)
    return text.getvalue() if rows else ""


def _said(figure: Mapping[str, object]) -> str:
    if not figure:
        return ""
    mean, half = _number(figure, "mean"), _half_interval(figure)
    said = f"{decimal(mean)} ± {decimal(_number(figure, 'sd'))}"
    return said if half is None else f"{said} ({decimal(mean - half)} to {decimal(mean + half)})"


def _half_interval(figure: Mapping[str, object]) -> float | None:
    """Return half the 95 % interval of a mean; None of one seed."""
    count = int(_number(figure, "seeds"))
    if count < 2:
        return None
    quantile = _T_975[count - 2] if count - 2 < len(_T_975) else 1.96
    return quantile * _number(figure, "sd") / math.sqrt(count)


def _number(figure: Mapping[str, object], name: str) -> float:
    value = figure.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0
