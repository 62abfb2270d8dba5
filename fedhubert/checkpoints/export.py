"""``fedhubert export``: a round checkpoint in the formats that other tools load."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Format:
    """One output format.

    Attributes:
        write: Takes the checkpoint, the folder to make, and whether files in it may be replaced.
        usage: Python that loads the result, with ``{out}`` for the folder.
    """

    write: Callable[[Mapping[str, Any], Path, bool], Path]
    usage: str


def _huggingface(checkpoint: Mapping[str, Any], out: Path, overwrite: bool) -> Path:
    from fedhubert.checkpoints.huggingface import export_huggingface

    return export_huggingface(checkpoint, out, overwrite=overwrite)


FORMATS = {
    "huggingface": Format(_huggingface, 'transformers.HubertModel.from_pretrained("{out}")'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="C",
        help="round checkpoint, or the folder of a run or of its checkpoints (then the newest intact one)",
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="huggingface", help="what to write (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--force", action="store_true", help="write into DIR even if it is not empty, replacing files of the same names"
    )


def run(args: argparse.Namespace) -> int:
    """Export as the flags say, print what was written and how to load it; returns 0."""
    from fedhubert.checkpoints.store import find_checkpoint, load_checkpoint

    path = find_checkpoint(args.checkpoint)
    out = export(load_checkpoint(path), args.format, args.out, overwrite=args.force)
    print(f"{path} -> {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    print(f"load it with {FORMATS[args.format].usage.format(out=out)}")
    return 0


def export(checkpoint: Mapping[str, Any], format_name: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write ``checkpoint`` (of ``load_checkpoint``) to the folder ``out`` and return it.

    Raises:
        CheckpointError: weights that do not fit the format, or a folder that is in use or cannot be written.
    """
    return FORMATS[format_name].write(checkpoint, out, overwrite)
