"""``fedhubert export``: a round checkpoint in the formats that other tools load."""

import argparse
from pathlib import Path

from fedhubert.formats import FORMATS, REFUSED, loading


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
        help=f"what to write: {', '.join(FORMATS)} (default: %(default)s)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
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
    from fedhubert.formats.model_card import Publication
    from fedhubert.formats.round_file import find_checkpoint, load_checkpoint

    languages = tuple(code for given in args.language for code in given.split(","))
    publication = Publication(args.license, languages, args.base_model, tuple(args.dataset))
    path = find_checkpoint(args.checkpoint)
    out = export(
        load_checkpoint(path),
        args.format,
        args.out,
        overwrite=args.force,
        publication=publication,
    )
    print(f"{path} -> {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    unsaid = [flag for flag in ("license", "language") if not getattr(args, flag)]
    if unsaid:
        print(f"the model card does not say: {', '.join(f'--{flag}' for flag in unsaid)}")
    print(f"load it with {loading(args.format, out)}")
    return 0
