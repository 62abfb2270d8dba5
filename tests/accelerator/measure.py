"""Time, memory, waits and the card's load."""

import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.accelerator.context import Context, Skipped, need

Run = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Wait for all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(context: Context, run: Run, *, for_s: float = 3.0, warm_up: int = 2) -> float:
    """Return the mean seconds of a run, over at least three and about ``for_s`` seconds; toy sizes: of one."""
    if context.quick:
        warm_up, for_s = 1, 0.0
    for _ in range(warm_up):
        run()
    synchronize(context.device)
    started, count = time.monotonic(), 0
    while count < (1 if context.quick else 3) or time.monotonic() - started < min(
        for_s, context.left - 5.0
    ):
        run()
        count += 1
    synchronize(context.device)
    return (time.monotonic() - started) / count


def peak_gb(device: torch.device) -> float | None:
    """Return the most memory that tensors have taken on the card since the last part ended."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def waits(context: Context, run: Run) -> int:
    """Return how often a run makes the host wait for the card, as torch's own debug mode sees it."""
    if not context.cuda:
        raise Skipped("torch counts waits on CUDA devices only")
    run()
    synchronize(context.device)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


class Busy:
    """Samples how busy the card is, by NVML or else by nvidia-smi."""

    def __init__(self, device: torch.device) -> None:
        self._index = device.index or 0
        self._read = self._reader()
        self._samples: list[float] = []
        self._stop = threading.Event()

    @property
    def share(self) -> float:
        """The mean share of time in which a kernel ran."""
        return sum(self._samples) / len(self._samples) / 100.0 if self._samples else float("nan")

    @contextmanager
    def sampling(self) -> Iterator["Busy"]:
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(10.0)

    def _sample(self) -> None:
        while not self._stop.wait(0.25):
            try:
                self._samples.append(self._read())
            except Exception:
                return

    def _reader(self) -> Callable[[], float]:
        try:
            nvml: Any = need("pynvml", "nvidia-ml-py")
            nvml.nvmlInit()
            # NVML counts all cards of the machine; this one is found by its identity.
            handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            try:
                handle = nvml.nvmlDeviceGetHandleByUUID(
                    f"GPU-{torch.cuda.get_device_properties(self._index).uuid}"
                )
            except Exception:
                print(
                    "NVML does not know the card's identity; taking the card of the same number",
                    flush=True,
                )
            nvml.nvmlDeviceGetUtilizationRates(handle)
            return lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except Exception as error:
            command = [
                "nvidia-smi",
                f"--id={self._index}",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
            ]

            def ask() -> float:
                return float(
                    subprocess.run(
                        command, capture_output=True, text=True, timeout=5, check=True
                    ).stdout
                )

            try:
                ask()
            except Exception as other:
                raise Skipped(
                    f"neither NVML ({error}) nor nvidia-smi ({other}) tells the card's load"
                ) from None
            return ask


def driver() -> str:
    """Return the driver's version; raises :class:`Skipped` where nobody knows it."""
    try:
        nvml: Any = need("pynvml", "nvidia-ml-py")
        nvml.nvmlInit()
        version = nvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    except Exception as error:
        try:
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            return subprocess.run(
                command, capture_output=True, text=True, timeout=10, check=True
            ).stdout.splitlines()[0]
        except Exception as other:
            raise Skipped(f"neither NVML ({error}) nor nvidia-smi ({other}) tells it") from None
