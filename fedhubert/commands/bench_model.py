"""``fedhubert bench-model``: what encoders take to run, beside each other."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from fedhubert.evaluation.speed import Size, Speed
    from fedhubert.models.hubert import HubertModel

SIZES = "model="


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="C",
        help=(
            "round checkpoint, run folder, HuggingFace folder, any encoder that can be imported, "
            "or model=NAME: sizes of conf/model, fresh weights"
        ),
    )
    parser.add_argument(
        "--runs",
        default="torch,onnx,int8",
        metavar="R,S",
        help="what runs them (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        default="1,all",
        metavar="N,M",
        help="on how many threads; all: as many as there are cores (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="audio in one run (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="runs of each, in turn; the median counts (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure as the flags say, print a table; returns 0."""
    from dataclasses import asdict

    from fedhubert.errors import ConfigError
    from fedhubert.evaluation.checkpoint import write_results
    from fedhubert.evaluation.speed import RUNS, SpeedSettings, size_of, speeds_of
    from fedhubert.reporting.console import log_to_terminal, output_console

    runs = tuple(dict.fromkeys(args.runs.split(",")))
    if not set(runs) <= set(RUNS):
        raise ConfigError(f"--runs {args.runs!r}: name some of {', '.join(RUNS)}", setting="--runs")
    if args.repeats < 1:
        raise ConfigError("--repeats: at least 1", setting="--repeats")
    settings = SpeedSettings(runs, _threads(args.threads), args.seconds, args.repeats)
    console = log_to_terminal()
    models = [_model(source) for source in args.checkpoints]
    with console.status("") as status:
        speeds = speeds_of(models, settings, status.update)
    sizes = [size_of(name, model, settings.seconds) for name, model in models]
    output = output_console(110)
    _print(output, sizes, speeds, settings.seconds)
    if args.out:
        figures = {
            "seconds": settings.seconds,
            "sizes": [asdict(size) for size in sizes],
            "speeds": [asdict(speed) for speed in speeds],
        }
        write_results(args.out, figures)
        output.print(f"results: {args.out}", soft_wrap=True, highlight=False)
    return 0


def _threads(text: str) -> tuple[int, ...]:
    from fedhubert.errors import ConfigError

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        counts = [int(cores or 1) if count == "all" else int(count) for count in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ConfigError(
            f"--threads {text!r}: give numbers, or all, for example 1,all", setting="--threads"
        )
    return tuple(dict.fromkeys(counts))


def _model(source: str) -> "tuple[str, HubertModel]":
    """Return what an encoder is called, and the encoder."""
    from fedhubert.formats.importing import import_encoder
    from fedhubert.formats.starting import load_into
    from fedhubert.models.hubert import build_hubert

    if source.startswith(SIZES):
        from fedhubert.compose import compose

        config = compose([source]).model
        return f"{config.name}, fresh", build_hubert(config, 0)
    imported = import_encoder(source)
    model = build_hubert(imported.config, 0)
    load_into(model, imported)
    return imported.config.name, model


def _print(output: "Console", sizes: "list[Size]", speeds: "list[Speed]", seconds: float) -> None:
    """Print what models are, and what each run of them takes."""
    from rich.table import Table

    table = Table(title="Encoders")
    for heading in ("model", "parameters", "MACs per second of audio"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for size in sizes:
        table.add_row(
            size.model, f"{size.parameters / 1e6:.2f} M", f"{size.macs_per_s / 1e9:.2f} G"
        )
    output.print(table)
    table = Table(title=f"Per second of audio, {seconds:g} s at once")
    for heading in ("model", "run", "threads", "ms", "CPU ms", "times real", "file MB", "peak MB"):
        table.add_column(heading, justify="left" if heading in ("model", "run") else "right")
    for speed in speeds:
        table.add_row(
            speed.model,
            speed.run,
            str(speed.threads),
            f"{1000 * speed.wall_s:.1f}",
            f"{1000 * speed.cpu_s:.1f}",
            f"{1 / speed.wall_s:.0f}",
            f"{speed.file_bytes / 1e6:.1f}",
            f"{speed.peak_bytes / 1e6:.0f}",
        )
    output.print(table)
