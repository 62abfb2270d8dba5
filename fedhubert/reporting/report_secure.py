"""The report's table of secure sums: what was masked, who dropped out, what was opened."""

from collections import Counter
from collections.abc import Sequence

from fedhubert.reporting.report_data import RunData

HEAD = [
    "run",
    "sums opened",
    "masked updates",
    "dropped out, and opened around",
    "fewest helpers",
    "rounds skipped",
    "kB to open, a round",
]


def secure_rows(runs: Sequence[RunData]) -> list[list[str]]:
    """Return a row for each run that had secure sums."""
    rows = []
    for run in runs:
        sums = [event["secure"] for event in run.rounds if event.get("secure")]
        if not sums:
            continue
        opened = [each for each in sums if "skipped" not in each]
        skipped = Counter(str(each["skipped"]) for each in sums if "skipped" in each)
        sent = sum(each["bytes_down"] + each["bytes_up"] for each in opened)
        rows.append(
            [
                run.name,
                str(len(opened)),
                str(sum(each["masked"] for each in opened)),
                str(sum(len(each["dropped"]) for each in opened)),
                str(min((each["helpers"] for each in opened), default=0)),
                ", ".join(f"{code} ({count})" for code, count in sorted(skipped.items())),
                f"{sent / 1e3 / max(1, len(opened)):.1f}",
            ]
        )
    return rows
