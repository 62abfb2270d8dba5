"""``fedhubert compare``: federated, central, local-only and untrained models of the same settings,
over several seeds."""

import json
import logging
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from fedhubert.baselines.central import BaselineOptions, client_folder, train_baseline
from fedhubert.config import Config
from fedhubert.errors import ConfigError
from fedhubert.evaluation.checkpoint import Probing, evaluate_checkpoint, write_results
from fedhubert.files import on_server
from fedhubert.objectives.spec import spec_of
from fedhubert.reporting.summary import final_event
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.metrics import read_events

log = logging.getLogger("fedhubert")

FEDERATED, CENTRAL, LOCAL_ONLY, UNTRAINED, MFCC, TEACHER = (
    "federated",
    "central",
    "local only",
    "random init",
    "mfcc",
    "teacher",
)
SYSTEMS = (FEDERATED, CENTRAL, LOCAL_ONLY, UNTRAINED, MFCC, TEACHER)

_HELD_OUT = ("masked_accuracy", "loss", "cosine_distance", "accuracy", "macro_f1", "wer", "cer")
_SIZES = ("parameters", "audio_s_per_s")

Train = Callable[[Config], object]


@dataclass(frozen=True)
class Comparison:
    """What to compare: one configuration per seed, and what to probe with (None: masked prediction
    only)."""

    configs: Mapping[int, Config]
    out: Path
    probing: Probing | None = None
    local_clients: int = 1


def compare(comparison: Comparison, train_federated: Train) -> dict[str, Any]:
    """Train what is not there yet, evaluate, and return the figures of each seed and their summary.

    Every training goes into its own folder below ``out`` and is skipped once it is finished;
    ``compare.json`` there is written after each seed.

    Raises:
        FedhubertError: as the trainings and the evaluation.
    """
    seeds: dict[str, Any] = {}
    for seed, config in comparison.configs.items():
        log.info("seed %d: %d of %d", seed, len(seeds) + 1, len(comparison.configs))
        seeds[str(seed)] = _one_seed(
            comparison, config, comparison.out / f"seed_{seed}", train_federated
        )
        results = {"seeds": seeds, "summary": summarise(list(seeds.values()))}
        write_results(comparison.out / "compare.json", results)
    return results


def _one_seed(
    comparison: Comparison, config: Config, out: Path, train_federated: Train
) -> dict[str, Any]:
    def placed(name: str) -> Config:
        return config.model_copy(
            update={"out": str(out / name), "checkpoint_dir": None, "resume": "auto"}
        )

    log.info("federated")
    train_federated(placed("federated"))
    log.info("central")
    central = train_baseline(placed("central"), BaselineOptions())
    log.info("each client alone")
    local = train_baseline(placed("local_only"), BaselineOptions(local_only=True))
    federated = RunFolder.of(placed("federated"))
    _check_same_labels(federated, central, local)
    systems: dict[str, dict[str, object]] = {
        FEDERATED: _held_out(final_event(federated.metrics_file)),
        CENTRAL: _held_out(final_event(central.metrics_file)),
        LOCAL_ONLY: _held_out(final_event(local.metrics_file)),
        UNTRAINED: _held_out(
            next(
                event for event in read_events(central.metrics_file) if event["event"] == "initial"
            )
        ),
        MFCC: {},
    }
    if comparison.probing is not None:
        clients = [
            client_folder(local, number)
            for number in range(min(comparison.local_clients, config.federated.num_clients))
        ]
        probed = {FEDERATED: [federated], CENTRAL: [central], LOCAL_ONLY: clients}
        for name, folders in probed.items():
            _probe(
                systems,
                name,
                [(str(folder.path), folder.path / "results.json") for folder in folders],
                comparison.probing,
            )
        taught = spec_of(config.task).taught
        if taught is not None:
            given = str(taught.teacher)
            source = given if given.startswith("torchaudio:") else str(on_server(given))
            systems[TEACHER] = {}
            _probe(
                systems,
                TEACHER,
                [(source, comparison.out / "teacher.json")],
                comparison.probing,
            )
    return systems


def _held_out(event: Mapping[str, Any]) -> dict[str, object]:
    return {name: event["validation"][name] for name in _HELD_OUT if name in event["validation"]}


def _probe(
    systems: dict[str, dict[str, object]],
    name: str,
    sources: Sequence[tuple[str, Path]],
    probing: Probing,
) -> None:
    """Add a system's probes (mean over ``sources``: an encoder, and where its results are kept),
    its size and its speed."""
    # once for all systems
    asked = replace(probing, settings=replace(probing.settings, references=name == FEDERATED))
    studies = [_study(source, path, asked) for source, path in sources]
    best = [best_layers(study) for study in studies]
    for measured, values in best[0].items():
        systems[name][measured] = statistics.fmean(
            figures[measured]["checkpoint"] for figures in best
        )
        for reference in (UNTRAINED, MFCC):
            if reference in values:
                systems[reference][measured] = values[reference]
    for figure in _SIZES:
        systems[name][figure] = statistics.fmean(study["encoder"][figure] for study in studies)


def best_layers(study: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return figure -> encoder -> its value in the encoder's best layer: the accuracy of each
    probe, and ABX errors within and across speakers."""
    best: dict[str, dict[str, float]] = {}

    def add(name: str, encoder: str, value: float, better: Callable[[float, float], float]) -> None:
        values = best.setdefault(name, {})
        values[encoder] = better(value, values.get(encoder, value))

    for task, probe in study.get("probes", {}).items():
        for row in probe["rows"]:
            add(task, row["encoder"], row["accuracy"], max)
    for measure, section in study.get("abx", {}).items():
        for row in section["rows"]:
            for where in ("within", "across"):
                if row[where] is not None:
                    add(f"ABX {where}, {measure}", row["encoder"], row[where]["error"], min)
    return best


def _check_same_labels(*folders: RunFolder) -> None:
    """Accuracies under different pseudo-labels cannot be compared."""
    keys = {
        event["key"]
        for folder in folders
        for event in read_events(folder.metrics_file)
        if event.get("event") == "targets"
    }
    if len(keys) > 1:
        raise ConfigError(
            f"the runs below {folders[0].path.parent} have different pseudo-labels (did the data "
            "change?); remove them, or choose another out=...",
            setting="out",
        )


def _study(source: str, path: Path, probing: Probing) -> dict[str, Any]:
    """Return the evaluation of an encoder (of a run: its last checkpoint), from ``path`` where the
    same was asked before."""
    asked = {"source": source, "probing": repr(replace(probing, cache_gb=0.0, threads=0))}
    newest = max(
        (file.stat().st_mtime for file in Path(source).glob("checkpoints/round_*_checkpoint.pt")),
        default=0.0,
    )
    try:
        known: dict[str, object] = json.loads(path.read_text())
        if known.get("asked") == asked and os.stat(path).st_mtime > newest:
            return known
    except (OSError, ValueError):
        pass
    results = {**evaluate_checkpoint(source, probing), "asked": asked}
    write_results(path, results)
    return results


def summarise(
    seeds: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Return system -> figure -> mean, standard deviation (of a sample; 0 for one seed) and number
    of seeds."""
    summary: dict[str, dict[str, dict[str, float | int]]] = {}
    for system in SYSTEMS:
        figures: dict[str, list[float]] = {}
        for systems in seeds:
            for name, value in systems.get(system, {}).items():
                figures.setdefault(name, []).append(float(value))
        summary[system] = {
            name: {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
                "seeds": len(values),
            }
            for name, values in figures.items()
        }
    return summary


def comparison_table(summary: Mapping[str, Mapping[str, Mapping[str, float | int]]]) -> Table:
    """Return one row per system: mean and standard deviation of each figure over seeds."""
    names = list(dict.fromkeys(name for figures in summary.values() for name in figures))
    table = Table(title="Mean and standard deviation over seeds")
    table.add_column("model")
    if not summary.get(TEACHER):  # all of one size
        names = [name for name in names if name not in _SIZES]
    for name in names:
        table.add_column(
            name if name in (*_HELD_OUT, *_SIZES) else f"{name} (best layer)", justify="right"
        )
    for system, figures in summary.items():
        if figures:
            table.add_row(system, *(_figure(figures.get(name)) for name in names))
    return table


def _figure(figure: Mapping[str, float | int] | None) -> str:
    if figure is None:
        return ""
    digits = 0 if figure["mean"] >= 10 else 4
    return f"{figure['mean']:.{digits}f} ± {figure['sd']:.{digits}f}"
