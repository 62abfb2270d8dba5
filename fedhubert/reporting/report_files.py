"""The folders of runs as a report reads them: events, configuration, figures of evaluations and
comparisons."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedhubert.config.catalog import rules_for
from fedhubert.errors import DataError
from fedhubert.reporting.report_data import RunData
from fedhubert.runs.metrics import read_events
from fedhubert.runs.starts import read_starts


def read_runs(folders: list[Path]) -> list[RunData]:
    """Read run folders, under names that tell them apart; of a sweep's folder the runs of its jobs,
    named by the settings in which they differ; of a comparison's, those of its seeds, too.

    Raises:
        DataError: a folder that holds no run.
    """
    runs: dict[Path, RunData] = {}
    jobs: dict[Path, str] = {}
    for folder in folders:
        found = _jobs(folder)
        below = {path: _read(path, "") for path in found or [folder, *_of_seeds(folder)]}
        jobs |= zip(found, _by_settings(list(below.values())), strict=False)
        runs |= below
    names = [jobs.get(path) or name for path, name in zip(runs, _names(list(runs)), strict=True)]
    if len(set(names)) < len(names):
        names = _names(list(runs))
    return [replace(run, name=name) for run, name in zip(runs.values(), names, strict=True)]


def _by_settings(runs: list[RunData]) -> list[str]:
    """Return what differs between the jobs of a sweep as names: ``strategy=FedAdam``; empty where
    that does not tell them apart, or takes more than three settings."""
    differing = config_differences(runs)
    if not 0 < len(differing) <= 3:
        return [""] * len(runs)
    said = [
        ", ".join(f"{key.rpartition('.')[2]}={values[place]}" for key, values in differing)
        for place in range(len(runs))
    ]
    return said if len(set(said)) == len(said) else [""] * len(runs)


def _of_seeds(folder: Path) -> list[Path]:
    """Return the runs of a comparison: federated and central, of each seed."""
    if not (folder / "compare.json").is_file():
        return []
    found = [path for kind in ("federated", "central") for path in folder.glob(f"seed_*/{kind}")]
    return sorted(path for path in found if (path / "metrics.jsonl").is_file())


def config_differences(runs: list[RunData]) -> list[tuple[str, list[str]]]:
    """Return (dotted key, value of each run) of the settings in which runs differ; where a run is
    kept is no setting."""
    return [(key, values) for key, values in all_settings(runs) if len(set(values)) > 1]


def all_settings(runs: list[RunData]) -> list[tuple[str, list[str]]]:
    """Return (dotted key, value of each run) of the configurations; where a run is kept is no
    setting."""
    flat = [dict(_flatten(run.config)) for run in runs]
    return [
        (key, [_text(values[key]) if key in values else "not set" for values in flat])
        for key in sorted({key for values in flat for key in values})
        if rules_for(key).get("in_report", True)
    ]


def _read(folder: Path, name: str) -> RunData:
    events = list(read_events(folder / "metrics.jsonl"))
    comparison = _json(folder / "compare.json")
    if not events and not comparison:
        raise DataError(
            f"{folder} holds no run: there is no metrics.jsonl with events in it, and no "
            "compare.json",
            setting="RUN",
        )
    return RunData(
        name,
        folder,
        events,
        _yaml(folder / "config.yaml"),
        _json(folder / "results.json"),
        comparison,
        read_starts(folder),
    )


def _jobs(folder: Path) -> list[Path]:
    """Return the folders of a sweep's jobs that hold a run, by number; none where ``folder`` is a
    run or a comparison itself."""
    if (folder / "metrics.jsonl").is_file() or (folder / "compare.json").is_file():
        return []
    jobs = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(
        (path for path in jobs if (path / "metrics.jsonl").is_file()),
        key=lambda path: int(path.name),
    )


def _names(folders: list[Path]) -> list[str]:
    """Return the shortest endings of the paths that differ."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max((len(part) for part in parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{folder} ({number})" for number, folder in enumerate(folders, start=1)]


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> dict[str, object]:
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, OmegaConfBaseException):
        return {}
    except Exception:  # a YAML parser's own kinds, of a file that somebody edited
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: object) -> str:
    return (
        "null"
        if value is None
        else json.dumps(value)
        if isinstance(value, (list, bool))
        else str(value)
    )
