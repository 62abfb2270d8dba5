"""A process that runs one encoder when it is asked to: ``python -m
fedhubert.evaluation.speed_worker RUN FILE THREADS``, with RUN torch or onnx.

Each line that comes in is a number of samples; the answer is the wall and CPU seconds of one run.
At the end of the input it says the most memory that it has had from then on, in bytes. For a graph
nothing but onnxruntime and NumPy is imported, as where it is deployed.
"""

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Step = Callable[[npt.NDArray[np.float32]], object]


def main() -> None:
    kind, file, threads = sys.argv[1:]
    step = (_torch if kind == "torch" else _onnx)(Path(file), int(threads))
    random = np.random.default_rng(0)
    _forget_most_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        waveforms = (0.1 * random.standard_normal((1, int(line)))).astype(np.float32)
        wall, cpu = time.perf_counter(), time.process_time()
        step(waveforms)
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
    print(_most_memory(), flush=True)


def _onnx(file: Path, threads: int) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # a thread that waits for work would take time from the process that is measured next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda waveforms: session.run(None, {"waveforms": waveforms})


def _torch(file: Path, threads: int) -> Step:
    import torch
    from safetensors import safe_open

    from fedhubert.config import ModelConfig, from_json
    from fedhubert.models.hubert import build_hubert
    from fedhubert.models.layers import LayerEncoder

    torch.set_num_threads(threads)
    with safe_open(file, framework="pt") as opened:
        config = from_json(ModelConfig, opened.metadata()["model"])
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    model = build_hubert(config, 0)
    model.wav2vec2.load_state_dict(state)
    encoder = LayerEncoder(model, [config.num_layers])
    del model, state

    def step(waveforms: npt.NDArray[np.float32]) -> object:
        with torch.inference_mode():
            return encoder(torch.from_numpy(waveforms))

    return step


def _forget_most_memory() -> None:
    """Building a model takes more than running it; Linux counts anew when it is told to."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _most_memory() -> int:
    """Linux tells this process's own; the other figure begins at that of whoever started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    main()
