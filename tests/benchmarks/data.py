"""What batches from disk cost: decoding, resampling and cropping beside whole files through soundfile and torchaudio; long files, epochs, manifests.

The audio is generated: tones in noise. ``python -m tests.benchmarks.data`` prints one JSON line per figure.
"""

import argparse
import csv
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio

from fedhubert.config import DataConfig, TaskConfig
from fedhubert.data.audio import read_audio
from fedhubert.data.batching import SAMPLE_RATE_HZ, BatchPlan
from fedhubert.data.loading import load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from tests.benchmarks.figures import case_alone, figure, in_turn, memory_mb, peak_mb, run

CROP_S = 4.0
FORMS = [(form, rate_hz) for form in ("flac", "wav") for rate_hz in (16000, 8000)]


def write_audio(path: Path, rate_hz: int, seconds: float, seed: int) -> int:
    """Write a file; return its samples."""
    rng, samples = np.random.default_rng(seed), round(rate_hz * seconds)
    time_s = np.arange(samples) / rate_hz
    tone = 0.3 * np.sin(2 * np.pi * (120 + 7 * seed) * time_s) * np.sin(2 * np.pi * 3 * time_s)
    soundfile.write(
        path,
        (tone + 0.02 * rng.standard_normal(samples)).astype(np.float32),
        rate_hz,
        subtype="PCM_16",
    )
    return samples


def corpus(folder: Path, form: str, rate_hz: int, files: int, seconds: float) -> Manifest:
    """Write files of ``seconds`` to twice that, and return their manifest."""
    paths = [f"{number}.{form}" for number in range(files)]
    lengths = [
        write_audio(folder / path, rate_hz, seconds * (1 + number / files), number)
        for number, path in enumerate(paths)
    ]
    return manifest_of(folder, paths, np.array(lengths), rate_hz)


def manifest_of(folder: Path, paths: list[str], lengths: Any, rate_hz: int) -> Manifest:
    return Manifest(
        folder, paths, ["speaker"] * len(paths), lengths, np.full(len(paths), rate_hz, np.int32), {}
    )


def ours(manifest: Manifest, plan: BatchPlan, data: DataConfig) -> int:
    """Take an epoch's batches as training does; return their samples."""
    batches = load_batches(
        manifest, plan, range(plan.num_batches), None, mask_spec(TaskConfig()), data
    )
    return sum(batch.waveforms_BN.numel() for batch in batches)


def peer(manifest: Manifest, plan: BatchPlan) -> int:
    """Take the same crops out of whole files."""
    total = 0
    for position in range(plan.num_batches):
        spec, rows = plan.batch(position), []
        for row, start in zip(spec.rows.tolist(), spec.starts.tolist(), strict=True):
            samples, rate_hz = soundfile.read(manifest.root / manifest.paths[row], dtype="float32")
            waveform = torch.from_numpy(samples)
            if rate_hz != SAMPLE_RATE_HZ:
                waveform = torchaudio.functional.resample(waveform, rate_hz, SAMPLE_RATE_HZ)
            rows.append(waveform[start : start + spec.num_samples])
        total += torch.stack(rows).numel()
    return total


def compare_decoding(files: int, seconds: float, repeats: int) -> None:
    """Print CPU seconds per hour of audio in batches, for both kinds of file, both rates, and 0 to 2 loader threads."""
    for form, rate_hz in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            manifest = corpus(Path(folder), form, rate_hz, files, seconds)
            loaders = {
                workers: DataConfig(
                    num_workers=workers, max_seconds=1.5 * seconds, min_seconds=0.25
                )
                for workers in range(3)
            }
            plan = BatchPlan(manifest.lengths(), range(files), loaders[0], 0, 0)
            hours = peer(manifest, plan) / SAMPLE_RATE_HZ / 3600
            sides = {
                f"{workers}": partial(ours, manifest, plan, data)
                for workers, data in loaders.items()
            }
            took = in_turn({**sides, "peer": partial(peer, manifest, plan)}, repeats)
        for workers in loaders:
            name = (
                f"data: CPU per hour of audio, {form} at {rate_hz // 1000} kHz, {workers} workers"
            )
            figure(name, took[str(workers)] / hours, took["peer"] / hours, "s")


def compare_long_file(minutes: float, repeats: int) -> None:
    """Print what a short crop out of a long file takes beside decoding all of it."""
    for form in ("flac", "wav"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"long.{form}"
            count, start = (
                round(CROP_S * SAMPLE_RATE_HZ),
                write_audio(path, SAMPLE_RATE_HZ, 60 * minutes, 0) // 2,
            )
            sides = {
                "crop": partial(read_audio, path, SAMPLE_RATE_HZ, start, count),
                "all": partial(read_audio, path),
            }
            took = in_turn(sides, repeats)
        figure(
            f"data: CPU, {CROP_S:g} s out of {minutes:g} min of {form}, beside all of it",
            took["crop"],
            took["all"],
            "s",
        )


def epoch(rows: int, first: int) -> dict[str, float]:
    """Return how much the peak memory grows between the ``first`` utterances and the end of an epoch of ``rows``."""
    with tempfile.TemporaryDirectory() as folder:
        files = corpus(Path(folder), "wav", SAMPLE_RATE_HZ, 8, 1.0)
        names = [files.paths[row % 8] for row in range(rows)]
        manifest = manifest_of(
            files.root, names, files.num_samples[np.arange(rows) % 8], SAMPLE_RATE_HZ
        )
        data = DataConfig(num_workers=1, min_seconds=0.25, batch_seconds=30.0)
        plan = BatchPlan(manifest.lengths(), range(rows), data, 0, 0)
        seen, early = 0, 0.0
        for batch in load_batches(
            manifest, plan, range(plan.num_batches), None, mask_spec(TaskConfig()), data
        ):
            seen += len(batch.waveforms_BN)
            early = early or (peak_mb() if seen >= first else 0.0)
    return {"mb": early, "growth_mb": peak_mb() - early}


def write_manifest(path: Path, rows: int) -> None:
    """Write a manifest with LibriSpeech's kind of paths."""
    with path.open("w") as file:
        file.write("path,speaker,language,num_samples,sample_rate\n")
        for row in range(rows):
            speaker, chapter = row % 2000, row // 100
            name = f"train/{speaker}/{chapter}/{speaker}-{chapter}-{row % 100:04d}.flac"
            file.write(f"{name},{speaker},en,{160_000 + row % 99_991},16000\n")


def read_manifest(way: str, path: Path) -> dict[str, float]:
    """Read it as ours or into the standard library's dictionaries; return CPU seconds and peak memory."""
    before, started = memory_mb(), time.process_time()
    if way == "ours":
        count = len(Manifest.read(path))
    else:
        with path.open(newline="") as file:
            count = len(list(csv.DictReader(file)))
    return {"rows": count, "s": time.process_time() - started, "mb": peak_mb() - before}


def case(what: str, *arguments: str) -> dict[str, float]:
    """One measurement of memory, in this process."""
    return (
        epoch(*map(int, arguments)) if what == "epoch" else read_manifest(what, Path(arguments[0]))
    )


def compare_memory(epoch_rows: int, manifest_rows: int) -> None:
    """Print what an epoch's peak memory grows by, and what a large manifest takes."""
    grown = case_alone(__spec__.name, "epoch", epoch_rows, epoch_rows // 10)
    name = f"data: peak memory after {epoch_rows} utterances, beside that after the first {epoch_rows // 10}"
    figure(name, grown["mb"] + grown["growth_mb"], grown["mb"], "MB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.csv"
        write_manifest(path, manifest_rows)
        mine, theirs = (case_alone(__spec__.name, way, path) for way in ("ours", "dictionaries"))
    assert mine["rows"] == theirs["rows"] == manifest_rows
    about = f"a manifest of {manifest_rows} rows, beside csv.DictReader"
    figure(f"data: CPU, {about}", mine["s"], theirs["s"], "s")
    figure(f"data: memory, {about}", mine["mb"], theirs["mb"], "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=5)

    def compare(given: argparse.Namespace) -> None:
        compare_decoding(given.files, given.seconds, given.repeats)
        compare_long_file(given.minutes, given.repeats)
        compare_memory(epoch_rows=10_000, manifest_rows=1_000_000)

    run(parser, case, compare)


if __name__ == "__main__":
    main()
