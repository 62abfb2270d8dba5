"""The report's table of differential privacy: what was spent, and what noise the model has."""

from collections.abc import Sequence

from fedhubert.reporting.report_data import RunData

HEAD = [
    "run",
    "noise added by",
    "epsilon after the last round",
    "delta",
    "clip norm (first, last)",
    "noise on the mean update (standard deviation, last round)",
    "holds if so many clients of each sum are honest",
]


def privacy_rows(runs: Sequence[RunData]) -> list[list[str]]:
    """Return a row for each run with differential privacy."""
    rows = []
    for run in runs:
        told = [event["privacy"] for event in run.rounds if event.get("privacy")]
        if not told:
            continue
        first, last = told[0], told[-1]
        honest = last.get("honest_clients")
        epsilon = last.get("epsilon")
        rows.append(
            [
                run.name,
                "the server" if honest is None else "the clients",
                "infinite" if epsilon is None else f"{epsilon:.3g}",
                f"{last['delta']:g}",
                f"{first['clip_norm']:.3g}, {last['clip_norm']:.3g}",
                f"{last['noise_std']:.3g}",
                "" if honest is None else str(honest),
            ]
        )
    return rows
