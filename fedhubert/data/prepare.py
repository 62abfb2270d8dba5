"""``fedhubert prepare``: from audio on disk to a manifest of utterances that can be read."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhubert.data.corpora import Candidate

DEFAULT_MIN_SECONDS = 0.5
MAX_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    kinds = parser.add_subparsers(title="what to prepare", dest="kind", required=True, metavar="KIND")
    sample = kinds.add_parser("sample", help="fetch the sample speech (five languages, about 2 h, 100 MB) and write its manifest")
    librispeech = kinds.add_parser("librispeech", help="a LibriSpeech tree: speaker and chapter from the paths")
    folder = kinds.add_parser("folder", help="any folder of wav, flac, ogg or mp3 files")
    sample.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where to keep it (default: the user's cache folder, where `data.manifest=sample` looks)",
    )
    for kind in (librispeech, folder):
        kind.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that holds the audio")
        kind.add_argument(
            "--out", type=Path, required=True, metavar="FILE", help="manifest to write: .csv, or .tsv for fairseq's form"
        )
    librispeech.add_argument(
        "--download", metavar="SUBSET", help="download this subset first, for example dev-clean or train-clean-100"
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
    """Write the manifest; returns 0. Raises :class:`~fedhubert.errors.DataError` when nothing is left to write."""
    from fedhubert.data import corpora
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
    write_manifest(root, out, candidates, min_seconds=args.min_seconds, num_workers=args.num_workers, full=args.verify == "full")
    return 0


def write_manifest(
    root: Path, out: Path, candidates: "list[Candidate]", *, min_seconds: float, num_workers: int, full: bool = False
) -> None:
    """Check every candidate, write those that can be read to ``out`` and the others, with reasons, beside it and to standard error.

    Raises:
        DataError: no audio was found, or none of it can be read.
    """
    import csv
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from fedhubert.data.manifest import Manifest
    from fedhubert.errors import DataError

    if not candidates:
        raise DataError(f"no audio (wav, flac, ogg, mp3) below {root}", setting="--root")
    console = Console(stderr=True)
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda item: check(root, item.path, min_seconds, full=full), candidates)
        bar = track(results, "checking audio", total=len(candidates), console=console, disable=not console.is_terminal)
        checked = list(zip(candidates, bar, strict=True))
    rejected = [(item.path, result) for item, result in checked if isinstance(result, str)]
    kept = [(item, *result) for item, result in checked if not isinstance(result, str)]
    for path, reason in rejected[:MAX_LISTED]:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if len(rejected) > MAX_LISTED:
        print(f"left out: {len(rejected) - MAX_LISTED} more, see {out.with_suffix('.rejected.csv')}", file=sys.stderr)
    if not kept:
        raise DataError(f"none of the {len(candidates)} audio files below {root} can be used (reasons above)", setting="--root")
    columns = sorted({name for item, _, _ in kept for name in item.columns})
    manifest = Manifest(
        root,
        [item.path for item, _, _ in kept],
        [item.speaker for item, _, _ in kept],
        np.array([count for _, count, _ in kept], dtype=np.int64),
        np.array([rate for _, _, rate in kept], dtype=np.int32),
        {name: [item.columns.get(name, "") for item, _, _ in kept] for name in columns},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest.write(out)
    if rejected:
        with out.with_suffix(".rejected.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "reason"), *rejected])
    hours = float((manifest.num_samples / manifest.sample_rates_hz).sum()) / 3600
    print(f"{out}: {len(kept)} utterances, {hours:.2f} h, {len(set(manifest.speakers))} speakers; {len(rejected)} files left out")
    if out.parent != root and out.suffix == ".csv":
        print(f"the audio lies elsewhere: train with data.manifest={out} data.root={root}")


def check(root: Path, path: str, min_seconds: float, *, full: bool = False) -> tuple[int, int] | str:
    """Return (samples, rate in Hz) of a file that can be used, or the reason why not."""
    import numpy as np

    from fedhubert.data.audio import MAX_READ_S, audio_info, read_audio
    from fedhubert.data.manifest import Manifest
    from fedhubert.errors import DataError

    try:
        one = Manifest(root, [path], [""], np.ones(1, np.int64), np.ones(1, np.int32), {})
        file = one.audio_path(0)
        if file.stat().st_size == 0:
            return "empty file"
        num_samples, rate_hz = audio_info(file)
        if num_samples < min_seconds * rate_hz:
            return f"too short: {num_samples / rate_hz:.2f} s, at least {min_seconds} s wanted"
        edge = min(num_samples, rate_hz // 4)
        pieces = [(0, edge), (num_samples - edge, edge)]
        if full:
            step = int(MAX_READ_S) * rate_hz
            pieces = [(start, min(step, num_samples - start)) for start in range(0, num_samples, step)]
        for start, count in pieces:
            read_audio(file, rate_hz, start, count)
    except DataError as error:
        return str(error).removeprefix(f"{root / path}: ")
    except OSError as error:
        return str(error.strerror)
    return num_samples, rate_hz
