"""An Opus copy of a corpus, small enough to take along: audio, manifest, and the labels beside it.

``python -m tests.accelerator.pack MANIFEST OUT --max-mb 20``. Audio becomes mono at 16 kHz at the bit rate that the size allows; where even
10 kbit/s is too much, every speaker's last utterances are left out. CSV files beside the manifest that have a column ``path`` (labels,
alignments) and ``.km`` files of as many lines are rewritten to fit; texts (``*.md``) go along as they are.
"""

import argparse
import csv
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from fedhubert.data.audio import read_audio
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError

_RATE_HZ = 16000
_LEAST_BPS, _MOST_BPS = 10_000, 48_000
_FILE_BYTES = 1_000
"""What a file takes beside the rate that it is asked for: fitted on speech of half a second to fifteen."""
_CODEC_BPS = (256_000, 6_000)
"""libsndfile's rates for compression levels 0 and 1, per channel."""
_SAMPLE_COLUMNS = ("start_sample", "end_sample")
Rows = npt.NDArray[np.int64]


def pack(manifest_path: Path, out: Path, max_mb: float) -> Manifest:
    """Write the copy into ``out`` and return its manifest.

    Raises:
        DataError: ``out`` is not empty; not a single utterance fits; audio that cannot be read.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.read(manifest_path)
    labels_bytes = _write_beside(manifest_path, manifest, np.arange(len(manifest)), out)
    budget = max_mb * 1e6 * 0.97 - labels_bytes
    rows = _chosen(manifest, budget)
    if not len(rows):
        raise DataError(
            f"--max-mb {max_mb:g} has no room for a single utterance beside {labels_bytes / 1e6:.1f} MB of labels"
        )
    seconds = float(manifest.lengths()[rows].sum()) / _RATE_HZ
    rate = min(_MOST_BPS, max(_LEAST_BPS, (budget - _FILE_BYTES * len(rows)) * 8 / seconds))
    room = budget
    while True:
        lengths, size = _encode(manifest, rows, out, rate)
        if size <= budget:
            break
        # Silence and noise take more or less than was asked for: encode again at what is left, or leave some out.
        rate *= 0.95 * budget / size
        if rate < _LEAST_BPS:
            rate, room = _LEAST_BPS, 0.95 * room * budget / size
            rows = _chosen(manifest, room)
    kept = manifest.select(rows.tolist())
    rates = np.full(len(rows), _RATE_HZ, np.int32)
    packed = Manifest(
        out, [_ogg(path) for path in kept.paths], kept.speakers, lengths, rates, kept.columns
    )
    packed.write(out / "manifest.csv")
    _write_beside(manifest_path, manifest, rows, out)
    _remove_others(out, set(packed.paths))
    return packed


def _chosen(manifest: Manifest, room: float) -> Rows:
    """Return the rows that stay in so many bytes, at the lowest rate: all, or of every speaker the same share, the first ones."""
    sizes = manifest.lengths() / _RATE_HZ * _LEAST_BPS / 8 + _FILE_BYTES
    if sizes.sum() <= room:
        return np.arange(len(manifest))
    share = room / sizes.sum()
    speakers = np.array(manifest.speakers)
    kept = []
    for speaker in dict.fromkeys(manifest.speakers):
        rows = np.flatnonzero(speakers == speaker)
        until = np.cumsum(sizes[rows])
        kept.append(rows[until <= share * until[-1]])
    return np.sort(np.concatenate(kept)).astype(np.int64)


def _encode(
    manifest: Manifest, rows: Rows, out: Path, rate_bps: float
) -> tuple[npt.NDArray[np.int64], int]:
    """Write the audio; return its lengths in samples [n] and its bytes."""
    most, least = _CODEC_BPS
    level = min(1.0, max(0.0, (most - rate_bps) / (most - least)))

    def encode(row: int) -> tuple[int, int]:
        path = out / _ogg(manifest.paths[row])
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = read_audio(manifest.audio_path(row), _RATE_HZ)
        soundfile.write(
            path, samples, _RATE_HZ, format="OGG", subtype="OPUS", compression_level=level
        )
        return soundfile.info(path).frames, path.stat().st_size

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = list(pool.map(encode, rows.tolist()))
    return np.array([length for length, _ in written], np.int64), sum(size for _, size in written)


def _ogg(path: str) -> str:
    return str(Path(path).with_suffix(".ogg"))


def _remove_others(out: Path, paths: set[str]) -> None:
    for file in out.rglob("*.ogg"):
        if file.relative_to(out).as_posix() not in paths:
            file.unlink()


def _write_beside(manifest_path: Path, manifest: Manifest, rows: Rows, out: Path) -> int:
    """Write what lies beside the manifest, for the chosen rows; return the bytes."""
    chosen = {manifest.paths[row]: int(manifest.sample_rates_hz[row]) for row in rows.tolist()}
    written = []
    for file in sorted(manifest_path.parent.iterdir()):
        target = out / file.name
        if file == manifest_path or not file.is_file():
            continue
        if file.suffix == ".csv" and _rewrite_csv(file, target, chosen):
            written.append(target)
        elif file.suffix == ".km":
            lines = file.read_text(encoding="utf-8").splitlines()
            if len(lines) == len(manifest):
                target.write_text(
                    "".join(f"{lines[row]}\n" for row in rows.tolist()), encoding="utf-8"
                )
                written.append(target)
        elif file.suffix == ".md":
            shutil.copyfile(file, target)
            written.append(target)
    return sum(target.stat().st_size for target in written)


def _rewrite_csv(file: Path, target: Path, chosen: dict[str, int]) -> bool:
    """Write the lines of a CSV whose utterances were chosen, under their new names; False for one without paths."""
    with file.open(newline="", encoding="utf-8") as source:
        reader = csv.DictReader(source)
        names = reader.fieldnames or []
        if "path" not in names:
            return False
        with target.open("w", newline="", encoding="utf-8") as written:
            writer = csv.DictWriter(written, names, lineterminator="\n")
            writer.writeheader()
            for row in reader:
                if row["path"] not in chosen:
                    continue
                rate = chosen[row["path"]]
                for name in _SAMPLE_COLUMNS:  # counted at the file's own rate
                    if name in row and rate != _RATE_HZ:
                        row[name] = str(round(int(row[name]) * _RATE_HZ / rate))
                writer.writerow({**row, "path": _ogg(row["path"])})
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.accelerator.pack", description=__doc__)
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument(
        "--max-mb",
        type=float,
        default=20.0,
        metavar="MB",
        help="of all files (default: %(default)s)",
    )
    given = parser.parse_args()
    packed = pack(given.manifest, given.out, given.max_mb)
    size = sum(file.stat().st_size for file in given.out.rglob("*") if file.is_file())
    hours = float(packed.num_samples.sum()) / _RATE_HZ / 3600
    print(
        f"{given.out}: {len(packed)} utterances, {len(set(packed.speakers))} speakers, {hours:.2f} h in {size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
