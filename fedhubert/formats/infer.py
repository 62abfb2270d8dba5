"""Writes the layers of audio files: python infer.py AUDIO... makes AUDIO.npz beside each. Needs
onnxruntime, numpy and soundfile alone."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile


def main(paths: list[str]) -> None:
    model = Path(__file__).with_name("model.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    least = int(session.get_modelmeta().custom_metadata_map["least_samples"])
    names = [output.name for output in session.get_outputs()]
    for path in paths:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        if rate_hz != 16000 or len(samples) < least:
            sys.exit(f"{path}: {len(samples)} samples at {rate_hz} Hz; give {least} at 16000 Hz")
        layers = session.run(names, {"waveforms": samples.mean(axis=1)[None]})
        found = {name: layer[0] for name, layer in zip(names, layers, strict=True)}
        np.savez(f"{path}.npz", **found)
        print(path, *(f"{name} {layer.shape}" for name, layer in found.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
