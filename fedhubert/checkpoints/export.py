"""``fedhubert export``: a round checkpoint in the formats that other tools load."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMATS = {
    "huggingface": 'transformers.HubertModel.from_pretrained("{out}")',
    "s3prl": 's3prl.upstream.hubert.hubconf.hubert_local("{out}/hubert_s3prl.pt")',
    "torchaudio": 'runpy.run_path("{out}/load.py")["load_model"]()',
    "fairseq": 'fairseq.checkpoint_utils.load_model_ensemble_and_task(["{out}/hubert_fairseq.pt"])',
}
"""Formats, each with the Python that loads it; ``{out}`` is the folder."""

REFUSED = {
    "distiller": "s3prl's distiller_local has no LayerNorm before the projection, and these encoders have one: no such file computes the same. "
    "Use `--format s3prl`: it loads with hubert_local, students too"
}
"""Formats that people look for and that cannot hold these models exactly, each with the reason and the remedy."""


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
        "--force", action="store_true", help="write into DIR even if it is not empty, replacing files of the same names"
    )


def _format_name(name: str) -> str:
    if name not in FORMATS:
        raise argparse.ArgumentTypeError(REFUSED.get(name, f"{name!r} is none of {', '.join(FORMATS)}"))
    return name


def run(args: argparse.Namespace) -> int:
    """Export as the flags say, print what was written and how to load it; returns 0."""
    from fedhubert.checkpoints.store import find_checkpoint, load_checkpoint

    path = find_checkpoint(args.checkpoint)
    out = export(load_checkpoint(path), args.format, args.out, overwrite=args.force)
    print(f"{path} -> {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    print(f"load it with {FORMATS[args.format].format(out=out)}")
    return 0


def export(checkpoint: Mapping[str, Any], format_name: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write ``checkpoint`` (of ``load_checkpoint``) and its model card to the folder ``out``, which appears whole, and return it.

    ``overwrite`` lets files be replaced in a folder that is not empty.

    Raises:
        CheckpointError: weights that do not fit the format, or a folder that is in use or cannot be written.
    """
    from fedhubert.checkpoints.fairseq_files import write_fairseq, write_s3prl
    from fedhubert.checkpoints.files import publish_folder
    from fedhubert.checkpoints.huggingface import write_huggingface
    from fedhubert.checkpoints.model_card import write_model_card
    from fedhubert.checkpoints.source import Source
    from fedhubert.checkpoints.torchaudio_form import write_torchaudio

    write = {"huggingface": write_huggingface, "s3prl": write_s3prl, "torchaudio": write_torchaudio, "fairseq": write_fairseq}
    source = Source.of(checkpoint)

    def fill(folder: Path) -> None:
        write[format_name](source, folder)
        write_model_card(source, format_name, folder)

    publish_folder(out, fill, overwrite=overwrite)
    return out
