"""``fedhubert export``: a round checkpoint in the formats that other tools load, or as a
program."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedhubert.formats import FORMATS, PROGRAMS, REFUSED, loading

if TYPE_CHECKING:
    from fedhubert.formats.programs import Floats, ProgramSettings

COMPARED = 16
"""Utterances of a manifest on which a program is compared with the model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="C",
        help=(
            "round checkpoint, or the folder of a run or of its checkpoints (then the newest "
            "intact one)"
        ),
    )
    parser.add_argument(
        "--format",
        type=_format_name,
        default="huggingface",
        metavar="FORMAT",
        help=f"what to write: {', '.join(FORMATS | PROGRAMS)} (default: %(default)s)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--head",
        type=Path,
        metavar="FILE",
        help=(
            "a client's own head (task.head=personal), at its site: "
            "STATE_DIR/runs/RUN/partition_N/round_R.pt"
        ),
    )
    parser.add_argument(
        "--license", metavar="ID", help="license for the model card, as the hub names it: cc-by-4.0"
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="CODE",
        help="language of the speech for the model card (en); several: once for each, or en,fr",
    )
    parser.add_argument(
        "--base-model",
        metavar="NAME",
        help=(
            "what the run began from, as the hub names it (default: what init_from=hf:NAME, or the "
            "teacher, names)"
        ),
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME",
        help="a data set for the model card, as the hub names it; several: once for each",
    )
    program = parser.add_argument_group("onnx and torch_export")
    program.add_argument(
        "--layers",
        metavar="I,J",
        help="layers to give out, 0 being the transformer's input (default: the last)",
    )
    program.add_argument(
        "--int8", action="store_true", help="matrix products in 8 bits (onnx): smaller, faster"
    )
    program.add_argument(
        "--manifest",
        type=Path,
        metavar="M",
        help=(
            f"audio, {COMPARED} utterances of which it is compared with the model on, beside made "
            "sounds"
        ),
    )
    program.add_argument(
        "--root", type=Path, metavar="DIR", help="where the manifest's paths start"
    )
    program.add_argument(
        "--streaming-chunk", metavar="S", help="refused: no chunk gives what the whole would"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write into DIR even if it is not empty, replacing files of the same names",
    )


def _format_name(name: str) -> str:
    if name not in FORMATS | PROGRAMS:
        raise argparse.ArgumentTypeError(
            REFUSED.get(name, f"{name!r} is none of {', '.join(FORMATS | PROGRAMS)}")
        )
    return name


def run(args: argparse.Namespace) -> int:
    """Export as the flags say, print what was written and how to load it; returns 0."""
    from fedhubert.formats.export import export
    from fedhubert.formats.huggingface_heads import pipeline_of
    from fedhubert.formats.model_card import Publication
    from fedhubert.formats.own_head import with_head
    from fedhubert.formats.round_file import find_checkpoint, load_checkpoint
    from fedhubert.formats.source import HEADS_STAY, Source

    languages = tuple(code for given in args.language for code in given.split(","))
    publication = Publication(args.license, languages, args.base_model, tuple(args.dataset))
    path = find_checkpoint(args.checkpoint)
    checkpoint = load_checkpoint(path)
    if args.head is not None:
        checkpoint = with_head(checkpoint, args.head)
    out = export(
        checkpoint,
        args.format,
        args.out,
        overwrite=args.force,
        publication=publication,
        program=_program(args, checkpoint),
        tell=print,
    )
    print(f"{path} -> {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    if not Source.of(checkpoint).learned.shares_head:
        print(HEADS_STAY)
    unsaid = [flag for flag in ("license", "language") if not getattr(args, flag)]
    if unsaid:
        print(f"the model card does not say: {', '.join(f'--{flag}' for flag in unsaid)}")
    pipeline = pipeline_of(checkpoint["model"], args.format)
    print(f"load it with {loading(args.format, out, pipeline)}")
    return 0


def _program(
    args: argparse.Namespace, checkpoint: Mapping[str, object]
) -> "ProgramSettings | None":
    """Return what the flags say of a program; raises :class:`ConfigError` for flags that do not go
    with the format, or that no format takes."""
    from fedhubert.errors import ConfigError
    from fedhubert.formats.programs import ProgramSettings, refuse_chunks

    if args.streaming_chunk is not None:
        refuse_chunks(checkpoint)
    given = [name for name in ("layers", "int8", "manifest", "root") if getattr(args, name)]
    if args.format not in PROGRAMS:
        if given:
            raise ConfigError(
                f"--{given[0]} goes with --format {' or '.join(PROGRAMS)}", setting=f"--{given[0]}"
            )
        return None
    try:
        layers = tuple(int(layer) for layer in args.layers.split(",")) if args.layers else ()
    except ValueError:
        raise ConfigError(
            f"--layers {args.layers!r}: give numbers, for example 0,6,12", setting="--layers"
        ) from None
    return ProgramSettings(layers, args.int8, _audio(args.manifest, args.root))


def _audio(path: Path | None, root: Path | None) -> "tuple[Floats, ...]":
    """Return utterances from all over a manifest, of 30 s at most each."""
    from fedhubert.data.batching import RECEPTIVE_SAMPLES, SAMPLE_RATE_HZ
    from fedhubert.data.manifest import Manifest

    if path is None:
        return ()
    manifest = Manifest.read(path, root)
    lengths = manifest.lengths(SAMPLE_RATE_HZ)
    rows = [row for row in range(len(manifest)) if lengths[row] >= RECEPTIVE_SAMPLES]
    chosen = rows[:: max(1, len(rows) // COMPARED)][:COMPARED]
    return tuple(
        manifest.waveform(row, SAMPLE_RATE_HZ, 0, min(int(lengths[row]), 30 * SAMPLE_RATE_HZ))
        for row in chosen
    )
