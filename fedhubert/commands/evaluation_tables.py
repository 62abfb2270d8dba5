"""What ``fedhubert evaluate`` has found, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fedhubert.evaluation.finetuned import TunedScore


def print_tuned(console: Console, score: TunedScore) -> None:
    """Print the figures of a fine-tuned model, and what it took for what."""
    title = (
        f"task={score.task}: {score.utterances} utterances of {score.speakers} speakers "
        f"({score.left_out} without a label that was trained), loss {score.loss:.4f} nats"
    )
    table = Table(title=title)
    for head in ("figure", "value", "95 % over speakers"):
        table.add_column(head, justify="left" if head == "figure" else "right")
    for name, figure in score.figures.items():
        bounds = "{:.3f} to {:.3f}".format(*figure.interval) if figure.interval else ""
        table.add_row(name.replace("_", " "), f"{figure.value:.4f}", bounds)
    console.print(table)
    if score.confusion is not None:
        counts = Table(title="Said (rows) and heard")
        for head in ("", *score.labels):
            counts.add_column(head, justify="right")
        for label, row in zip(score.labels, score.confusion, strict=True):
            counts.add_row(label, *map(str, row))
        console.print(counts)


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print one table per measurement."""
    encoder, masked = results["encoder"], results["masked"]
    console.print(
        f"encoder: {encoder['parameters'] / 1e6:.2f} M parameters, {encoder['audio_s_per_s']:.0f} "
        "s of audio a CPU second",
        highlight=False,
        soft_wrap=True,
    )
    if "skipped" in masked:
        console.print(
            f"masked prediction: not scored ({masked['skipped']})",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    else:
        console.print(
            f"masked prediction on {masked['utterances']} utterances ({masked['left_out']} too "
            f"short): loss {masked['loss']:.4f} nats "
            f"(unigram entropy {masked['entropy_nats']:.4f}), accuracy "
            f"{masked['masked_accuracy']:.4f} "
            f"(most frequent label {masked['most_frequent_share']:.4f})",
            highlight=False,
            soft_wrap=True,
        )
    for task, probe in results["probes"].items():
        first = probe["rows"][0]
        title = (
            f"Probe: {task} ({first['items']} items, {first['classes']} labels, {probe['split']})"
        )
        table = _table(
            Table(title=title), "accuracy", "95 %", "lowest fold", "highest fold", "majority"
        )
        for row in probe["rows"]:
            _add_row(
                table,
                row,
                row["accuracy"],
                "{:.3f} to {:.3f}".format(*row["interval"]) if row["interval"] else "",
                min(row["fold_accuracies"]),
                max(row["fold_accuracies"]),
                row["majority"],
            )
        console.print(table)
    for measure, section in results["abx"].items():
        title = (
            f"ABX error: {measure} ({section['segments']} of {section['of_segments']} segments, "
            f"{section['phones']} phones, "
            f"{section['speakers']} speakers, {section['context']} context)"
        )
        table = _table(Table(title=title), "within speakers", "across speakers")
        for row in section["rows"]:
            _add_row(table, row, *(_error(row[where]) for where in ("within", "across")))
        console.print(table)
    for task, part in results["clusters"].items():
        title = f"Clusters: {task} ({part['rows'][0]['frames']} frames, k = {part['k']})"
        table = _table(Table(title=title), "PNMI", "label purity", "cluster purity")
        for row in part["rows"]:
            _add_row(table, row, row["pnmi"], row["label_purity"], row["cluster_purity"])
        console.print(table)
    if spent := results.get("seconds"):
        console.print(
            f"took {spent['cpu']:.0f} CPU seconds, {spent['clock']:.0f} by the clock, with "
            f"{spent['threads']} threads",
            highlight=False,
        )


def _table(table: Table, *names: str) -> Table:
    table.add_column("features")
    for name in ("layer", *names):
        table.add_column(name, justify="right")
    return table


def _add_row(table: Table, row: Mapping[str, Any], *figures: float | str) -> None:
    layer = "" if row["layer"] is None else str(row["layer"])
    table.add_row(
        row["encoder"],
        layer,
        *(figure if isinstance(figure, str) else f"{figure:.3f}" for figure in figures),
    )


def _error(score: Mapping[str, Any] | None) -> str:
    """Say an error rate and its interval."""
    if score is None:
        return ""
    low_high = "{:.3f} to {:.3f}".format(*score["interval"]) if score["interval"] else ""
    return f"{score['error']:.3f}  {low_high}".rstrip()
