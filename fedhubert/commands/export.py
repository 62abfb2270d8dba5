"""``fedhubert export``: a round checkpoint in the formats that other tools load."""

import argparse
from pathlib import Path

from fedhubert.formats import FORMATS, REFUSED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="C",
        help="round checkpoint, or the folder of a run or of its checkpoints (then the newest intact one)",
    )
    parser.add_argument(
        "--format",
        type=_format_name,
        default="huggingface",
        metavar="FORMAT",
        help=f"what to write: {', '.join(FORMATS)} (default: %(default)s)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--force",
        action="store_true",
        help="write into DIR even if it is not empty, replacing files of the same names",
    )


def _format_name(name: str) -> str:
    if name not in FORMATS:
        raise argparse.ArgumentTypeError(
            REFUSED.get(name, f"{name!r} is none of {', '.join(FORMATS)}")
        )
    return name


def run(args: argparse.Namespace) -> int:
    """Export as the flags say, print what was written and how to load it; returns 0."""
    from fedhubert.formats.export import export
    from fedhubert.formats.round_file import find_checkpoint, load_checkpoint

    path = find_checkpoint(args.checkpoint)
    out = export(load_checkpoint(path), args.format, args.out, overwrite=args.force)
    print(f"{path} -> {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    print(f"load it with {FORMATS[args.format].format(out=out)}")
    return 0
