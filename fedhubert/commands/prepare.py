"""``fedhubert prepare``: from audio on disk to a manifest of utterances that can be read."""

import argparse
import os
import sys
from pathlib import Path

DEFAULT_MIN_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    kinds = parser.add_subparsers(
        title="what to prepare", dest="kind", required=True, metavar="KIND"
    )
    sample = kinds.add_parser(
        "sample",
        help="fetch the sample speech (five languages, about 2 h, 100 MB) and write its manifest",
    )
    librispeech = kinds.add_parser(
        "librispeech", help="a LibriSpeech tree: speaker and chapter from the paths"
    )
    folder = kinds.add_parser("folder", help="any folder of wav, flac, ogg or mp3 files")
    sample.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where to keep it (default: the user's cache folder, where `data.manifest=sample` looks)",
    )
    for kind in (librispeech, folder):
        kind.add_argument(
            "--root", type=Path, required=True, metavar="DIR", help="folder that holds the audio"
        )
        kind.add_argument(
            "--out",
            type=Path,
            required=True,
            metavar="FILE",
            help="manifest to write: .csv, or .tsv for fairseq's form",
        )
    librispeech.add_argument(
        "--download",
        metavar="SUBSET",
        help="download this subset first, for example dev-clean or train-clean-100",
    )
    folder.add_argument(
        "--speaker-pattern",
        default="{speaker}/",
        metavar="PATTERN",
        help="how a path names its speaker and other columns, for example '{language}/{speaker}/' (default: the first folder)",
    )
    for kind in (sample, librispeech, folder):
        kind.add_argument(
            "--min-seconds",
            type=float,
            default=DEFAULT_MIN_SECONDS,
            metavar="S",
            help="leave shorter files out (default: %(default)s)",
        )
        kind.add_argument(
            "--num-workers",
            type=int,
            default=os.cpu_count() or 1,
            metavar="N",
            help="files checked at the same time (default: %(default)s)",
        )
        kind.add_argument(
            "--verify",
            choices=("ends", "full"),
            default="ends",
            help="decode the start and the end of every file, or all of it (default: %(default)s)",
        )


def run(args: argparse.Namespace) -> int:
    """Write the manifest; returns 0. Raises :class:`~fedhubert.errors.DataError` when nothing is
    left to write."""
    from fedhubert.data import corpora
    from fedhubert.data.prepare import write_manifest
    from fedhubert.errors import DataError

    if args.num_workers < 1:
        raise DataError("--num-workers must be at least 1", setting="--num-workers")
    if args.kind == "sample":
        root = (args.root or corpora.sample_folder()).expanduser().absolute()
        out = root / "manifest.csv"
        if out.is_file():
            print(f"the sample speech is there: {out}")
            return 0
        print(f"fetching the sample speech into {root}", file=sys.stderr)
        candidates = corpora.fetch_sample(root)
    else:
        root, out = args.root.expanduser().absolute(), args.out.expanduser().absolute()
        if args.kind == "librispeech":
            root = corpora.download_librispeech(root, args.download) if args.download else root
            candidates = corpora.scan_librispeech(root)
        else:
            candidates = corpora.scan_folder(root, args.speaker_pattern)
    write_manifest(
        root,
        out,
        candidates,
        min_seconds=args.min_seconds,
        num_workers=args.num_workers,
        full=args.verify == "full",
    )
    return 0
