"""How the runs of a report were made: when, by which command, with which versions and settings."""

from collections.abc import Sequence

from fedhubert.reporting.report_data import RunData
from fedhubert.reporting.report_files import all_settings, config_differences
from fedhubert.reporting.report_parts import Section, Table


def starts(runs: Sequence[RunData]) -> Section | None:
    """Return each start of each run: one that was stopped has several."""
    rows = [
        [
            run.name,
            str(start.get("time", "")),
            str(start.get("command", "")),
            ", ".join(f"{name} {version}" for name, version in versions.items()),
        ]
        for run in runs
        for start in run.starts
        for versions in [start.get("versions")]
        if isinstance(versions, dict)
    ]
    head = ["run", "started", "command", "versions"]
    return Section("How they were made", tables=[Table(head, rows)]) if rows else None


def settings(runs: Sequence[RunData]) -> Section | None:
    """Return the settings in which runs differ, and, folded, all."""
    configured = [run for run in runs if run.config]
    if not configured:
        return None
    names = [run.name for run in configured]
    differing = [[key, *values] for key, values in config_differences(configured)]
    rows = [[key, *values] for key, values in all_settings(configured)]
    note = ""
    tables = []
    if differing:
        tables = [Table(["setting that differs", *names], differing)]
    elif len(configured) > 1:
        note = "The runs have the same settings."
    tables.append(Table(["setting", *names], rows, heading="all settings", folded=True))
    return Section("Settings", tables=tables, note=note)
