"""The sections of a report on what was measured after training: probes, clusters, comparisons."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from fedhubert.reporting.report_data import RunData
from fedhubert.reporting.report_parts import Section, Table, decimal


def evaluations(runs: Sequence[RunData]) -> Section | None:
    """Return the tables of probes, ABX and clusters of the runs that have any."""
    tables = []
    for run in runs:
        for task, probe in entries(run.results.get("probes")):
            rows = _rows_of(probe, "accuracy", "majority")
            caption = f"{run.name}: probe for {task} ({probe.get('split', '')})"
            head = ["features", "layer", "accuracy", "majority"]
            tables.append(Table(head, rows, caption=caption))
        for measure, section in entries(run.results.get("abx")):
            rows = _rows_of(section, "within", "across", say=_abx)
            caption = f"{run.name}: ABX error, {measure} ({section.get('context', '')} context)"
            head = ["features", "layer", "within speakers", "across speakers"]
            tables.append(Table(head, rows, caption=caption))
        for task, clusters in entries(run.results.get("clusters")):
            rows = _rows_of(clusters, "pnmi", "label_purity", "cluster_purity")
            caption = f"{run.name}: {clusters.get('k', '')} clusters against {task}"
            head = ["features", "layer", "PNMI", "label purity", "cluster purity"]
            tables.append(Table(head, rows, caption=caption))
    return Section("Probes and clusters", tables=tables) if tables else None


def entries(values: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the entries of what a file should hold as name -> mapping; whatever else is there is
    left out."""
    for name, entry in values.items() if isinstance(values, Mapping) else ():
        if isinstance(entry, Mapping):
            yield str(name), entry


def _rows_of(
    results: Mapping[str, object], *figures: str, say: Callable[[object], str] | None = None
) -> list[list[str]]:
    """Return encoder, layer and figures, as ``say`` puts them, of each row of an evaluation's
    results."""
    rows = results.get("rows")
    return [
        [
            str(row.get("encoder", "")),
            "" if row.get("layer") is None else str(row["layer"]),
            *((say or decimal)(row.get(name)) for name in figures),
        ]
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, Mapping)
    ]


def _abx(score: object) -> str:
    """Say an ABX error rate and its interval."""
    found = score if isinstance(score, Mapping) else {}
    between = [decimal(bound) for bound in found.get("interval") or ()]
    return " ".join([decimal(found.get("error")), " to ".join(between)]).strip()
