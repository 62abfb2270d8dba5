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

    Kinds = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_MIN_SECONDS = 0.5
FORMS = ("kaldi", "commonvoice", "lhotse", "huggingface", "archive")
"""Corpora in the forms of other tools."""


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
        help=(
            "where to keep it (default: the user's cache folder, where `data.manifest=sample` "
            "looks)"
        ),
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
    _add_forms(kinds)
    for kind in kinds.choices.values():
        _add_choices(kind)


def _add_forms(kinds: Kinds) -> None:
    """Declare the forms of other tools."""
    kaldi = kinds.add_parser("kaldi", help="a Kaldi data directory: wav.scp, segments, utt2spk")
    voice = kinds.add_parser("commonvoice", help="Common Voice: a language's folder, or a release")
    lhotse = kinds.add_parser(
        "lhotse", help="lhotse's recordings and supervisions, or cuts (needs fedhubert[lhotse])"
    )
    hub = kinds.add_parser(
        "huggingface",
        help="an audiofolder, or parquet with an Audio column (needs fedhubert[huggingface])",
    )
    archive = kinds.add_parser("archive", help="tar and zip files of audio, read without unpacking")
    _add_places(kaldi, "folder that holds wav.scp")
    _add_places(voice, "folder with clips/ and tables, or with such folders")
    voice.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="table without .tsv: validated (default), train, dev, test, ...; may be repeated",
    )
    for flag, what in (
        ("--recordings", "its recordings"),
        ("--supervisions", "and their supervisions"),
        ("--cuts", "or its cuts"),
    ):
        lhotse.add_argument(flag, type=Path, metavar="FILE", help=what)
    _add_out(lhotse)
    for kind in (kaldi, lhotse):
        kind.add_argument(
            "--audio-root",
            type=Path,
            metavar="DIR",
            help=(
                "where relative paths start (default: the list's folder, those above it, or the "
                "working directory)"
            ),
        )
    _add_places(hub, "folder of audio or of parquet files, or a parquet file")
    hub.add_argument("--speaker-column", metavar="NAME", help="default: speaker_id, client_id, ...")
    _add_places(archive, "folder that holds .tar and .zip files")
    _add_pattern(archive)


def _add_places(kind: argparse.ArgumentParser, root: str) -> None:
    kind.add_argument("--root", type=Path, required=True, metavar="DIR", help=root)
    _add_out(kind)


def _add_out(kind: argparse.ArgumentParser) -> None:
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
        help=(
            "how a path names its speaker and other columns, for example '{language}/{speaker}/' "
            "(default: the first folder)"
        ),
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
        help=(
            "cut what is longer at pauses into utterances of at most S seconds, so that all of it "
            "is heard"
        ),
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
    for name in ("root", "out", "audio_root", "recordings", "supervisions", "cuts"):
        if isinstance(path := getattr(args, name, None), Path):
            setattr(args, name, path.expanduser().absolute())
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
    if not args.min_seconds >= 0:
        raise DataError("--min-seconds must be a number from 0 on", setting="--min-seconds")
    number = args.channel.isascii() and args.channel.isdigit() and int(args.channel) <= MAX_CHANNEL
    if args.channel not in ("mean", "loudest") and not number:
        raise DataError(
            f"--channel {args.channel!r} is neither a number from 0 on nor mean nor loudest",
            setting="--channel",
        )
    if args.cut is not None and not max(1.0, 3 * args.min_seconds) <= args.cut <= 3600.0:
        raise DataError(
            f"--cut {args.cut:g} must be from 1 to 3600 seconds, and three times --min-seconds or "
            "more",
            setting="--cut",
        )
    settings = Settings(args.verify == "full" or args.cut is not None, args.channel, args.cut)
    keep = args.duplicates == "keep"
    briefly = args.kind == "sample"
    return Choices(args.min_seconds, args.num_workers, settings, keep or briefly, briefly)


def _sample(args: argparse.Namespace, choices: Choices) -> int:
    from fedhubert import live
    from fedhubert.data import corpora
    from fedhubert.data.prepare import write_manifest

    root = (args.root or corpora.sample_folder()).expanduser().absolute()
    out = root / "manifest.csv"
    if out.is_file():
        print(f"the sample speech is there: {out}")
        return 0
    print(f"fetching the sample speech into {root}", file=sys.stderr)
    live.doing("fetching the sample speech")
    write_manifest(out, corpora.fetch_sample(root), choices)
    return 0


def _found(args: argparse.Namespace) -> Found:
    """Return what the corpus has."""
    from fedhubert.data import corpora, folders

    if args.kind in FORMS:
        return _of_form(args)
    if args.kind == "librispeech":
        root = args.root
        if args.download:
            root = corpora.download_librispeech(root, args.download)
        return folders.relocated(corpora.scan_librispeech(root))
    return folders.relocated(
        corpora.scan_folder(args.root, args.speaker_pattern, follow_links=args.follow_links)
    )


def _of_form(args: argparse.Namespace) -> Found:
    """Return what a corpus in another tool's form has."""
    from fedhubert.data.archives import scan_archives
    from fedhubert.data.common_voice import scan_common_voice
    from fedhubert.data.corpora import by_pattern, say_unmatched
    from fedhubert.data.hub_audio import scan_huggingface
    from fedhubert.data.kaldi import scan_kaldi
    from fedhubert.data.lhotse_form import scan_lhotse
    from fedhubert.errors import DataError

    if args.kind == "lhotse":
        return scan_lhotse(args.recordings, args.supervisions, args.cuts, args.audio_root)
    if not args.root.exists():
        raise DataError(f"no such folder: {args.root}", setting="--root")
    if args.kind == "kaldi":
        return scan_kaldi(args.root, args.audio_root)
    if args.kind == "commonvoice":
        return scan_common_voice(args.root, args.split or ["validated"])
    if args.kind == "huggingface":
        return scan_huggingface(args.root, args.out, args.speaker_column)
    found = scan_archives(args.root, by_pattern(args.speaker_pattern))
    say_unmatched(found, args.speaker_pattern)
    return found
