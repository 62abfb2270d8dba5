"""``fedhubert prepare``: from audio on disk to a manifest of utterances that can be read."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhubert.data.folders import Found
    from fedhubert.data.prepare import Choices

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
    folder = kinds.add_parser(
        "folder", help="any folder of wav, flac, ogg, opus, mp3, aiff, au, w64, sph, ... files"
    )
    sample.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where to keep it (default: the user's cache folder, where `data.manifest=sample` looks)",
    )
    for kind in (librispeech, folder):
        _add_places(kind, "folder that holds the audio")
    librispeech.add_argument(
        "--download",
        metavar="SUBSET",
        help="download this subset first, for example dev-clean or train-clean-100",
    )
    _add_pattern(folder)
    folder.add_argument(
        "--follow-links",
        action="store_true",
        help="follow links that lead out of the folder, too",
    )
    for kind in (sample, librispeech, folder):
        _add_choices(kind)


def _add_places(kind: argparse.ArgumentParser, root: str) -> None:
    kind.add_argument("--root", type=Path, required=True, metavar="DIR", help=root)
    kind.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="manifest to write: .csv, or .tsv for fairseq's form (16 kHz alone)",
    )


def _add_pattern(kind: argparse.ArgumentParser) -> None:
    kind.add_argument(
        "--speaker-pattern",
        default="{speaker}/",
        metavar="PATTERN",
        help="how a path names its speaker and other columns, for example '{language}/{speaker}/' (default: the first folder)",
    )


def _add_choices(kind: argparse.ArgumentParser) -> None:
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
        help="files listened to at the same time (default: %(default)s)",
    )
    kind.add_argument(
        "--verify",
        choices=("full", "ends"),
        default="full",
        help="decode all of every file, or only its start and end (default: %(default)s)",
    )
    kind.add_argument(
        "--channel",
        default="mean",
        metavar="N|mean|loudest",
        help="which channel is heard, counted from 0 (default: the mean of all)",
    )
    kind.add_argument(
        "--cut",
        type=float,
        metavar="S",
        help="cut what is longer at pauses into utterances of at most S seconds, so that all of it is heard",
    )
    kind.add_argument(
        "--duplicates",
        choices=("leave-out", "keep"),
        default="leave-out",
        help="what to do with audio that is there already (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the manifest; returns 0. Raises :class:`~fedhubert.errors.DataError` when nothing is
    left to write."""
    from fedhubert.data.lists import check_out
    from fedhubert.data.prepare import write_manifest

    choices = _choices(args)
    if args.kind == "sample":
        return _sample(args, choices)
    args.root, args.out = (path.expanduser().absolute() for path in (args.root, args.out))
    check_out(args.out, choices.settings)
    write_manifest(args.out, _found(args), choices)
    return 0


def _choices(args: argparse.Namespace) -> Choices:
    from fedhubert.data.checking import Settings
    from fedhubert.data.parts import MAX_CHANNEL
    from fedhubert.data.prepare import Choices
    from fedhubert.errors import DataError

    if args.num_workers < 1:
        raise DataError("--num-workers must be at least 1", setting="--num-workers")
    number = args.channel.isascii() and args.channel.isdigit() and int(args.channel) <= MAX_CHANNEL
    if args.channel not in ("mean", "loudest") and not number:
        raise DataError(
            f"--channel {args.channel!r} is neither a number from 0 on nor mean nor loudest",
            setting="--channel",
        )
    if args.cut is not None and not max(1.0, 3 * args.min_seconds) <= args.cut <= 3600.0:
        raise DataError(
            f"--cut {args.cut:g} must be from 1 to 3600 seconds, and three times --min-seconds or more",
            setting="--cut",
        )
    settings = Settings(args.verify == "full" or args.cut is not None, args.channel, args.cut)
    keep = args.duplicates == "keep" or args.kind == "sample"
    return Choices(args.min_seconds, args.num_workers, settings, keep)


def _sample(args: argparse.Namespace, choices: Choices) -> int:
    from fedhubert.data import corpora
    from fedhubert.data.prepare import write_manifest

    root = (args.root or corpora.sample_folder()).expanduser().absolute()
    out = root / "manifest.csv"
    if out.is_file():
        print(f"the sample speech is there: {out}")
        return 0
    print(f"fetching the sample speech into {root}", file=sys.stderr)
    write_manifest(out, corpora.fetch_sample(root), choices)
    return 0


def _found(args: argparse.Namespace) -> Found:
    """Return what the corpus has."""
    from fedhubert.data import corpora, folders

    if args.kind == "librispeech":
        root = args.root
        if args.download:
            root = corpora.download_librispeech(root, args.download)
        return folders.relocated(corpora.scan_librispeech(root))
    return folders.relocated(
        corpora.scan_folder(args.root, args.speaker_pattern, follow_links=args.follow_links)
    )
