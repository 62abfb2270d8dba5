"""``fedhubert export``: a round checkpoint in the formats that other tools load."""

import argparse
import shutil
import tempfile
from pathlib import Path

from fedhubert.errors import CheckpointError

_HOW_TO_LOAD = {"huggingface": 'transformers.HubertModel.from_pretrained("{out}")'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="C",
        help="round checkpoint, or a run's folder (then its newest whole one)",
    )
    parser.add_argument(
        "--format", choices=sorted(_HOW_TO_LOAD), default="huggingface", help="what to write (default: %(default)s)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace DIR if it is an earlier export")


def run(args: argparse.Namespace) -> int:
    """Export and say how to load the result; returns 0."""
    from fedhubert.checkpoints.store import find_checkpoint

    checkpoint = find_checkpoint(args.checkpoint)
    out = export(checkpoint, args.format, args.out, force=args.force)
    print(f"{checkpoint} -> {out}")
    print(f"load it with {_HOW_TO_LOAD[args.format].format(out=out)}")
    return 0


def export(checkpoint: Path, format_name: str, out: Path, *, force: bool = False) -> Path:
    """Write ``checkpoint`` to the folder ``out``, all or nothing.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or a folder that holds something else.
    """
    from fedhubert.checkpoints.huggingface import write_huggingface
    from fedhubert.checkpoints.store import load_checkpoint
    from fedhubert.config import ModelConfig, validate

    content = load_checkpoint(checkpoint)
    config = validate(ModelConfig, content["config"]["model"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not force:
            raise CheckpointError(f"{out} exists; choose another folder, or --force to replace an earlier export", setting="out")
        if not (out / "config.json").is_file():
            raise CheckpointError(f"{out} is not an earlier export, so --force does not replace it", setting="out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            folder = Path(scratch, "export")
            folder.mkdir()
            {"huggingface": write_huggingface}[format_name](content["model"], config, folder)
            if out.is_dir():
                shutil.rmtree(out)
            folder.replace(out)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror}", setting="out") from None
    return out
