"""What ``fedhubert prepare`` says when it is done."""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedhubert.config import DataConfig
from fedhubert.data.batching import ENOUGH_HEARD, heard_share
from fedhubert.data.checking import REMEDIES
from fedhubert.data.folders import Found
from fedhubert.data.manifest import Manifest

MAX_LISTED = 20

Rejected = Sequence[tuple[str, str]]
"""(path, reason)"""
Warnings = Sequence[tuple[str, str, str]]
"""(path, kind, detail)"""


def say_rejected(out: Path, rejected: Rejected) -> None:
    """Name what was left out, on standard error."""
    for path, reason in rejected[:MAX_LISTED]:
        print(f"left out: {printable(path)}: {printable(reason)}", file=sys.stderr)
    if len(rejected) > MAX_LISTED:
        listed = out.with_suffix(".rejected.csv")
        print(f"left out: {len(rejected) - MAX_LISTED} more, see {listed}", file=sys.stderr)


def printable(text: str) -> str:
    """Return text without line breaks and bytes that are not UTF-8, which would spoil a list."""
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return plain.replace("\r", "\\r").replace("\n", "\\n")


def say_how_much(out: Path, manifest: Manifest, rejected: Rejected) -> None:
    """Print the counts."""
    hours = float((manifest.num_samples / manifest.sample_rates_hz).sum()) / 3600
    print(
        f"{out}: {len(manifest)} utterances, {hours:.2f} h, {len(set(manifest.speakers))} "
        "speakers; "
        f"{len(rejected)} files left out"
    )


def say(
    out: Path, manifest: Manifest, rejected: Rejected, warnings: Warnings, found: Found
) -> None:
    """Print what came of it: counts, what is odd, and how much an epoch hears."""
    say_how_much(out, manifest, rejected)
    speakers = Counter(manifest.speakers)
    same = sum(reason.startswith("the same audio as ") for _, reason in rejected)
    if same:
        print(f"  {same} files left out hold the same audio as others (--duplicates keep)")
    for remark in found.remarks:
        print(f"  {remark}")
    by_kind: dict[str, list[str]] = defaultdict(list)
    for path, kind, _ in warnings:
        by_kind[kind].append(path)
    for kind, paths in sorted(by_kind.items()):
        print(f"  warning: {len(paths)} files: {kind} ({paths[0]}): {REMEDIES[kind]}")
    if by_kind:
        print(f"  each is named in {out.with_suffix('.warnings.csv')}")
    if len(speakers) == 1 and len(manifest) > 1:
        print(
            f"  warning: all utterances are of one speaker ({next(iter(speakers))}): is that so? "
            "`prepare folder --speaker-pattern` says where paths name it"
        )
    _say_heard(manifest)
    if out.parent != found.root and out.suffix == ".csv":
        print(f"the audio lies elsewhere: train with data.manifest={out} data.root={found.root}")


def _say_heard(manifest: Manifest) -> None:
    data, lengths = DataConfig(), manifest.lengths()
    share = heard_share(lengths, data)
    said = f"an epoch hears {100 * share:.0f} % of the audio"
    about = f"data.max_seconds={data.max_seconds}, data.min_seconds={data.min_seconds}"
    if share >= ENOUGH_HEARD:
        print(f"  {said} ({about})")
        return
    rate, total = data.sample_rate_hz, int(lengths.sum())
    beyond = np.clip(lengths - data.max_seconds * rate, 0, None).sum() / total
    below = lengths[lengths < data.min_seconds * rate].sum() / total
    print(f"  warning: {said} ({about}):")
    if beyond >= below:
        print(f"    {100 * beyond:.0f} % is cropped off long utterances: --cut 15 cuts at pauses")
    else:
        print(f"    {100 * below:.0f} % is in shorter utterances: lower data.min_seconds")
