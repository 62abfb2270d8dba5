"""``fedhubert evaluate``: what a checkpoint has learned, in a table and a JSON file."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedhubert.evaluation.checkpoint import Probing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="C",
        help="round checkpoint, run folder, HuggingFace folder, or any encoder that can be imported",
    )
    parser.add_argument(
        "--manifest", required=True, type=Path, metavar="M", help="audio to evaluate on"
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where its paths start (default: its own folder)"
    )
    add_annotation_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, mps or auto")


def add_annotation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that name annotations and say how much to compute."""
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="labels of utterances: path,task,label lines, or a column per task",
    )
    parser.add_argument(
        "--phones",
        type=Path,
        metavar="FILE",
        help="alignment: path,start_sample,end_sample,phone lines",
    )
    parser.add_argument(
        "--probe",
        action="append",
        metavar="NAME",
        help="probe for this task of the labels file or manifest column; may be repeated (default: all tasks of the labels file)",
    )
    parser.add_argument(
        "--purity",
        action="append",
        metavar="NAME",
        help="also compare clusters of frames with these labels; may be repeated",
    )
    parser.add_argument(
        "--train-manifest",
        type=Path,
        metavar="M",
        help="fit utterance probes on other audio (default: cross-validation)",
    )
    parser.add_argument("--train-root", type=Path, metavar="DIR", help="where its paths start")
    parser.add_argument("--train-labels", type=Path, metavar="FILE", help="its labels")
    parser.add_argument(
        "--layers",
        metavar="I,J",
        help="layers to look at, 0 being the transformer's input (default: all)",
    )
    parser.add_argument(
        "--clusters",
        type=_count,
        default=100,
        metavar="K",
        help="clusters of frames; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--folds",
        type=_positive,
        default=5,
        metavar="N",
        help="parts of cross-validation (default: %(default)s)",
    )
    parser.add_argument(
        "--max-frames",
        type=_positive,
        default=20_000,
        metavar="N",
        help="frames drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--max-utterances",
        type=_positive,
        default=4_000,
        metavar="N",
        help="utterances drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of what is drawn, and of k-means (default: %(default)s)",
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        default=2.0,
        metavar="GB",
        help="features kept in the cache folder (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate as the flags say, print tables; returns 0."""
    from fedhubert.evaluation.checkpoint import evaluate_checkpoint, write_results
    from fedhubert.reporting.console import log_to_terminal, output_console

    console = log_to_terminal()
    results = evaluate_checkpoint(args.checkpoint, probing_of(args), console)
    output = output_console(110)
    print_results(output, results)
    if args.out:
        write_results(args.out, results)
        output.print(f"results: {args.out}", soft_wrap=True, highlight=False)
    return 0


def probing_of(args: argparse.Namespace) -> "Probing":
    """Return what the flags ask for; raises :class:`ConfigError` for layers that are no numbers."""
    from fedhubert.errors import ConfigError
    from fedhubert.evaluation.checkpoint import Audio, Probing
    from fedhubert.evaluation.study import StudySettings

    try:
        layers = (
            None if args.layers is None else tuple(int(layer) for layer in args.layers.split(","))
        )
    except ValueError:
        raise ConfigError(
            f"--layers {args.layers!r}: give numbers, for example 0,6,12", setting="--layers"
        ) from None
    settings = StudySettings(
        probes=tuple(args.probe or ()),
        purities=tuple(args.purity or ()),
        layers=layers,
        clusters=args.clusters,
        folds=args.folds,
        max_frames=args.max_frames,
        max_utterances=args.max_utterances,
        seed=args.seed,
        device=args.device,
    )
    fitted_on = (
        Audio(args.train_manifest, args.train_root, args.train_labels)
        if args.train_manifest
        else None
    )
    return Probing(
        Audio(args.manifest, args.root, args.labels, args.phones),
        settings,
        fitted_on,
        args.cache_gb,
    )


def print_results(console: "Console", results: Mapping[str, Any]) -> None:
    """Print one table per measurement."""
    from rich.table import Table

    encoder, masked = results["encoder"], results["masked"]
    console.print(
        f"encoder: {encoder['parameters'] / 1e6:.2f} M parameters, {encoder['audio_s_per_s']:.0f} s of audio per CPU-second (per second on a GPU)",
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
            f"masked prediction on {masked['utterances']} utterances ({masked['left_out']} too short): loss {masked['loss']:.4f} nats "
            f"(unigram entropy {masked['entropy_nats']:.4f}), accuracy {masked['masked_accuracy']:.4f} "
            f"(most frequent label {masked['most_frequent_share']:.4f})",
            highlight=False,
            soft_wrap=True,
        )
    for task, probe in results["probes"].items():
        first = probe["rows"][0]
        title = (
            f"Probe: {task} ({first['items']} items, {first['classes']} labels, {probe['split']})"
        )
        table = _table(Table(title=title), "accuracy", "lowest fold", "highest fold", "majority")
        for row in probe["rows"]:
            _add_row(
                table,
                row,
                row["accuracy"],
                min(row["fold_accuracies"]),
                max(row["fold_accuracies"]),
                row["majority"],
            )
        console.print(table)
    for task, part in results["clusters"].items():
        title = f"Clusters: {task} ({part['rows'][0]['frames']} frames, k = {part['k']})"
        table = _table(Table(title=title), "PNMI", "label purity", "cluster purity")
        for row in part["rows"]:
            _add_row(table, row, row["pnmi"], row["label_purity"], row["cluster_purity"])
        console.print(table)


def _table(table: "Table", *names: str) -> "Table":
    table.add_column("features")
    for name in ("layer", *names):
        table.add_column(name, justify="right")
    return table


def _add_row(table: "Table", row: Mapping[str, Any], *figures: float) -> None:
    layer = "" if row["layer"] is None else str(row["layer"])
    table.add_row(row["encoder"], layer, *(f"{figure:.3f}" for figure in figures))


def _positive(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value
