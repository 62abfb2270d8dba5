"""Says what is heard in audio files: python infer.py AUDIO... prints each file's text or label,
with a score from 0 to 1. Needs onnxruntime, numpy and soundfile alone."""

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soundfile


def answer(scores: np.ndarray, said: dict[str, Any]) -> tuple[str, float]:
    """Return the label and its probability; or the text of the best token of each frame, and the
    mean probability of these (geometric)."""
    if "tokens" in said:
        scores[:, said["never_written"]] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    best = shares.argmax(-1)
    if "labels" in said:
        return said["labels"][best], float(shares[best])
    written = [token for token, _ in groupby(best.tolist()) if token != said["blank"]]
    text = "".join(" " if token == said["space"] else said["tokens"][token] for token in written)
    return " ".join(text.split()), float(np.exp(np.log(shares.max(-1)).mean()))


def main(paths: list[str]) -> None:
    model = Path(__file__).with_name("model.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    for path in paths:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        if rate_hz != 16000 or len(samples) < int(facts["least_samples"]):
            least = facts["least_samples"]
            sys.exit(f"{path}: {len(samples)} samples at {rate_hz} Hz; give {least} at 16000 Hz")
        (scores,) = session.run(["scores"], {"waveforms": samples.mean(axis=1)[None]})
        said, score = answer(scores[0], json.loads(facts["answers"]))
        print(path, said, f"{score:.3f}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
