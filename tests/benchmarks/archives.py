"""What audio in archives costs beside loose files, and what listening to all of every file costs beside its ends.

The audio is generated. ``python -m tests.benchmarks.archives`` prints one JSON line per figure.
"""

import argparse
import contextlib
import io
import tarfile
import tempfile
import zipfile
from functools import partial
from pathlib import Path

from fedhubert.cli import main as fedhubert
from fedhubert.config import DataConfig
from fedhubert.data.batching import SAMPLE_RATE_HZ, BatchPlan
from fedhubert.data.manifest import Manifest
from tests.benchmarks.data import corpus, ours
from tests.benchmarks.figures import figure, in_turn, run


def prepared(kind: str, root: Path, out: Path, *flags: str) -> Manifest:
    """Return the manifest that ``fedhubert prepare`` writes."""
    arguments = ["prepare", kind, "--root", str(root), "--out", str(out), "--num-workers", "1"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert fedhubert([*arguments, *flags]) == 0
    return Manifest.read(out, root)


def packed(loose: Path, folder: Path, form: str) -> Path:
    """Pack all of ``loose`` into one archive without compression."""
    folder.mkdir()
    if form == "tar":
        with tarfile.open(folder / "shard.tar", "w") as tar:
            tar.add(loose, "speaker")
    else:
        with zipfile.ZipFile(folder / "shard.zip", "w") as archive:
            for path in sorted(loose.iterdir()):
                archive.write(path, f"speaker/{path.name}")
    return folder


def compare_archives(files: int, seconds: float, repeats: int) -> None:
    """Print CPU seconds per hour of audio in batches out of archives, beside loose files."""
    for form in ("flac", "wav"):
        with tempfile.TemporaryDirectory() as scratch:
            loose = Path(scratch, "loose")
            loose.mkdir()
            corpus(loose, form, SAMPLE_RATE_HZ, files, seconds)
            manifests = {"loose": prepared("folder", loose, Path(scratch, "loose.csv"))}
            for kind in ("tar", "zip"):
                root = packed(loose, Path(scratch, kind), kind)
                manifests[kind] = prepared("archive", root, Path(scratch, f"{kind}.csv"))
            data = DataConfig(num_workers=1, max_seconds=1.5 * seconds, min_seconds=0.25)
            plan = BatchPlan(manifests["loose"].lengths(), range(files), data, 0, 0)
            hours = plan.audio_s(range(plan.num_batches)) / 3600
            took = in_turn(
                {name: partial(ours, each, plan, data) for name, each in manifests.items()}, repeats
            )
        for kind in ("tar", "zip"):
            name = f"archives: CPU per hour of audio, {form} in {kind}, beside loose files"
            figure(name, took[kind] / hours, took["loose"] / hours, "s")


def compare_listening(files: int, seconds: float, repeats: int) -> None:
    """Print CPU seconds per hour of audio that ``prepare`` takes for all of every file, beside their ends."""
    for form in ("flac", "wav"):
        with tempfile.TemporaryDirectory() as scratch:
            loose = Path(scratch, "loose")
            loose.mkdir()
            lengths = corpus(loose, form, SAMPLE_RATE_HZ, files, seconds).lengths()
            hours = float(lengths.sum()) / SAMPLE_RATE_HZ / 3600
            out = Path(scratch, "m.csv")
            sides = {
                how: partial(prepared, "folder", loose, out, "--verify", how)
                for how in ("full", "ends")
            }
            took = in_turn(sides, repeats)
        name = f"archives: CPU of prepare per hour of audio, {form}, all of it beside the ends"
        figure(name, took["full"] / hours, took["ends"] / hours, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)

    def compare(given: argparse.Namespace) -> None:
        compare_archives(given.files, given.seconds, given.repeats)
        compare_listening(given.files, given.seconds, given.repeats)

    run(parser, lambda what, *arguments: {}, compare)


if __name__ == "__main__":
    main()
