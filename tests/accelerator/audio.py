"""Speech for the steps that read files: the corpus that was given, or gliding tones in noise."""

from pathlib import Path

import numpy as np

from fedhubert.data.manifest import Manifest
from tests.accelerator.context import Context, need

SPEAKERS = 5


def manifest_of(context: Context) -> Path:
    """Return the corpus's manifest; without one, that of tones, which are written once (``ctx.out/tones``)."""
    return context.corpus or tones(context.out / "tones", files=4 if context.quick else 40)


def tones(folder: Path, files: int) -> Path:
    """Write ``files`` files of 1 to 3 s for each of :data:`SPEAKERS` speakers, and return their manifest."""
    path = folder / "manifest.csv"
    if path.exists():
        return path
    soundfile = need("soundfile")
    rng = np.random.default_rng(0)
    names, speakers, lengths = [], [], []
    for speaker in range(SPEAKERS):
        (folder / f"speaker{speaker}").mkdir(parents=True, exist_ok=True)
        for number in range(files):
            time_s = np.arange(int(16000 * (1.0 + 2.0 * number / files))) / 16000
            tone = np.sin(2 * np.pi * (150 + 60 * speaker + 200 * time_s) * time_s)
            samples = 0.3 * tone + 0.02 * rng.standard_normal(len(time_s))
            names.append(f"speaker{speaker}/tone{number}.flac")
            soundfile.write(folder / names[-1], samples.astype(np.float32), 16000)
            speakers.append(f"speaker{speaker}")
            lengths.append(len(samples))
    rates = np.full(len(names), 16000, np.int32)
    Manifest(folder, names, speakers, np.array(lengths, np.int64), rates, {}).write(path)
    return path
