"""How fast encoders run, and what they take: torch, onnxruntime and its 8 bits, on one thread and
on all, in turn.

Every case is a process of its own, which is asked for one run after the other, round by round: what
else the machine does then slows all of them alike.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from fedhubert.errors import ConfigError, FedhubertError
from fedhubert.formats.onnx_form import quantize, require_onnx, write_graph
from fedhubert.models.hubert import HubertModel, encoder_parameters
from fedhubert.models.layers import LayerEncoder

RUNS = ("torch", "onnx", "int8")
RATE_HZ = 16_000


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured: ``runs`` of :data:`RUNS`, on each number of ``threads``, ``repeats`` times
    after one to warm up, on ``seconds`` of audio at once."""

    runs: tuple[str, ...] = RUNS
    threads: tuple[int, ...] = (1,)
    seconds: float = 10.0
    repeats: int = 5


@dataclass(frozen=True)
class Speed:
    """One case.

    Attributes:
        model: What the encoder is called.
        run: torch, onnx or int8.
        threads: On how many.
        wall_s: Median seconds per second of audio (the real-time factor).
        cpu_s: The same in seconds of all processors together.
        file_bytes: Size of its weights or graph on the disk.
        peak_bytes: The most memory that its process has had, the interpreter and libraries too.
    """

    model: str
    run: str
    threads: int
    wall_s: float
    cpu_s: float
    file_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Size:
    """What an encoder is, whatever runs it: parameters, and multiplications with an addition per
    second of audio."""

    model: str
    parameters: int
    macs_per_s: int


def size_of(name: str, model: HubertModel, seconds: float) -> Size:
    """Count an encoder's parameters, and its products on ``seconds`` of audio (attention's grow
    with their square)."""
    encoder = LayerEncoder(model, [model.config.num_layers]).to("meta")
    waveforms = torch.zeros(1, round(seconds * RATE_HZ), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(waveforms)
    return Size(name, encoder_parameters(model), round(counter.get_total_flops() / 2 / seconds))


def speeds_of(
    models: Sequence[tuple[str, HubertModel]],
    settings: SpeedSettings,
    tick: Callable[[str], None] = lambda words: None,
) -> list[Speed]:
    """Measure every model in every run on every number of threads; ``tick`` is told what goes on.

    Raises:
        ConfigError: the extra ``onnx`` is not installed, or audio that is shorter than a frame.
        FedhubertError: a process that ended, with its last words.
    """
    samples = round(settings.seconds * RATE_HZ)
    if samples < 400:
        raise ConfigError(
            f"--seconds {settings.seconds:g}: shorter than a frame", setting="--seconds"
        )
    if set(settings.runs) - {"torch"}:
        require_onnx()
    with tempfile.TemporaryDirectory(prefix="fedhubert-bench-") as folder, _workers() as start:
        cases = []
        for number, (name, model) in enumerate(models):
            tick(f"writing {name}")
            files = _files(model, settings.runs, Path(folder) / str(number))
            cases += [
                (
                    name,
                    run,
                    threads,
                    file,
                    start("torch" if run == "torch" else "onnx", file, threads),
                )
                for run, file in files.items()
                for threads in settings.threads
            ]
        times: list[list[tuple[float, float]]] = [[] for _ in cases]
        for turn in range(settings.repeats + 1):
            tick(f"turn {turn} of {settings.repeats}")
            for taken, (*_, worker) in zip(times, cases, strict=True):
                found = worker.ask(samples)
                if turn:
                    taken.append(found)
        return [
            Speed(
                name,
                run,
                threads,
                statistics.median(wall for wall, _ in taken) / settings.seconds,
                statistics.median(cpu for _, cpu in taken) / settings.seconds,
                file.stat().st_size,
                worker.end(),
            )
            for taken, (name, run, threads, file, worker) in zip(times, cases, strict=True)
        ]


def _files(model: HubertModel, runs: Sequence[str], folder: Path) -> dict[str, Path]:
    """Write what each run needs."""
    folder.mkdir()
    files = {run: folder / f"{run}.{'safetensors' if run == 'torch' else 'onnx'}" for run in runs}
    encoder = LayerEncoder(model, [model.config.num_layers])
    if "torch" in runs:
        state = {name: tensor.contiguous() for name, tensor in model.wav2vec2.state_dict().items()}
        save_file(state, files["torch"], metadata={"model": model.config.model_dump_json()})
    if set(runs) - {"torch"}:
        graph = folder / "graph.onnx"
        write_graph(encoder, graph)
        if "int8" in runs:
            quantize(graph, files["int8"])
        if "onnx" in runs:
            os.replace(graph, files["onnx"])
    return files


class _Worker:
    """A process of :mod:`fedhubert.evaluation.speed_worker`."""

    def __init__(self, run: str, file: Path, threads: int) -> None:
        command = [
            sys.executable,
            "-m",
            f"{__package__}.speed_worker",
            run,
            str(file),
            str(threads),
        ]
        # a pipe that nobody reads could fill and stop it
        self.words = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the block that starts workers closes it)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.ready = False

    def ask(self, samples: int) -> tuple[float, float]:
        """Return the wall and CPU seconds of one run on so many samples."""
        if not self.ready:
            self.ready = bool(self._line())
        self._write(f"{samples}\n")
        wall, cpu = self._line().split()
        return float(wall), float(cpu)

    def end(self) -> int:
        """Return the most memory that it has had, in bytes; it then goes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return int(self._line())

    def _write(self, text: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(text)
            self.process.stdin.flush()
        except BrokenPipeError:
            self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.words.seek(0)
            words = self.words.read().strip().splitlines() or ["it said nothing"]
            raise FedhubertError(f"a process that was measured ended with {status}: {words[-1]}")
        return line


@contextmanager
def _workers() -> Iterator[Callable[[str, Path, int], _Worker]]:
    """Start processes, none of which outlives the block."""
    started: list[_Worker] = []

    def start(run: str, file: Path, threads: int) -> _Worker:
        started.append(_Worker(run, file, threads))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            with worker.words, worker.process as process:
                process.kill()
