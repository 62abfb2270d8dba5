"""Which audio files can be used: each is looked into before a manifest names it."""

import csv
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from fedhubert.data.audio import MAX_READ_S, audio_info, read_audio
from fedhubert.data.corpora import Candidate
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError

MAX_LISTED = 20


def write_manifest(
    root: Path,
    out: Path,
    candidates: list[Candidate],
    *,
    min_seconds: float,
    num_workers: int,
    full: bool = False,
) -> None:
    """Check every candidate, write those that can be read to ``out`` and the others, with reasons,
    beside it and to standard error.

    Raises:
        DataError: no audio was found, or none of it can be read.
    """
    if not candidates:
        raise DataError(f"no audio (wav, flac, ogg, mp3) below {root}", setting="--root")
    console = Console(stderr=True)
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda item: check(root, item.path, min_seconds, full=full), candidates)
        bar = track(
            results,
            "checking audio",
            total=len(candidates),
            console=console,
            disable=not console.is_terminal,
        )
        checked = list(zip(candidates, bar, strict=True))
    rejected = [(item.path, result) for item, result in checked if isinstance(result, str)]
    kept = [(item, *result) for item, result in checked if not isinstance(result, str)]
    for path, reason in rejected[:MAX_LISTED]:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if len(rejected) > MAX_LISTED:
        print(
            f"left out: {len(rejected) - MAX_LISTED} more, see {out.with_suffix('.rejected.csv')}",
            file=sys.stderr,
        )
    if not kept:
        raise DataError(
            f"none of the {len(candidates)} audio files below {root} can be used (reasons above)",
            setting="--root",
        )
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
    print(
        f"{out}: {len(kept)} utterances, {hours:.2f} h, {len(set(manifest.speakers))} speakers; {len(rejected)} files left out"
    )
    if out.parent != root and out.suffix == ".csv":
        print(f"the audio lies elsewhere: train with data.manifest={out} data.root={root}")


def check(
    root: Path, path: str, min_seconds: float, *, full: bool = False
) -> tuple[int, int] | str:
    """Return (samples, rate in Hz) of a file that can be used, or the reason why not."""
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
            pieces = [
                (start, min(step, num_samples - start)) for start in range(0, num_samples, step)
            ]
        for start, count in pieces:
            read_audio(file, rate_hz, start, count)
    except DataError as error:
        return str(error).removeprefix(f"{root / path}: ")
    except OSError as error:
        return str(error.strerror)
    return num_samples, rate_hz
