"""What benchmarks of the simulation engine share: starting it, timing rounds, watching memory."""

import os
import threading
import time
from pathlib import Path
from typing import Any

NUM_WORKERS, NUM_ROUNDS = 2, 3
TRAINED = {"train_micro_batches": 1, "train_steps": 1, "train_audio_s": 1.0}
TRAINED |= {"train_cross_entropy_sum": 1.0, "train_masked_frames": 1, "train_correct": 0}
"""What a client says of a round beside its update."""
DESCRIBED = {"train_utterances": 40, "train_audio_s": 200.0, "batches_per_epoch": 4}
DESCRIBED |= {"validation_utterances": 10, "validation_audio_s": 50.0}
"""What its site says of it before the first."""


class PeakMemory:
    """Samples, 20 times a second, the private memory of this process and what its Ray object store has touched, in MB."""

    def __init__(self) -> None:
        self.driver_mb = self.store_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        raylets: list[int] = []
        while not self._stop.wait(0.05):
            self.driver_mb = max(self.driver_mb, private_mb())
            raylets = raylets or _children(os.getpid(), "raylet")
            self.store_mb = max([self.store_mb, *map(_store_mb, raylets)])


def private_mb() -> float:
    """Return the private memory of this process."""
    return _status_mb(os.getpid(), "RssAnon")


def _status_mb(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def _store_mb(raylet: int) -> float:
    """Return how much of the object store's file in shared memory has ever been written to."""
    total = 0
    try:
        for descriptor in Path(f"/proc/{raylet}/fd").iterdir():
            if "plasma" in os.readlink(descriptor):
                total += os.stat(descriptor).st_blocks * 512
    except OSError:
        return 0.0
    return total / 2**20


def _children(pid: int, name: str) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.append(child)
    return found


def timed(strategy: Any, grid: Any, initial: Any, times: list[tuple[float, float]]) -> None:
    """Append each round's wall seconds and the driver's CPU seconds."""
    started = time.monotonic(), time.process_time()

    def after(server_round: int, arrays: Any) -> None:
        nonlocal started
        if server_round:
            times.append((time.monotonic() - started[0], time.process_time() - started[1]))
        started = time.monotonic(), time.process_time()

    strategy.start(grid, initial, num_rounds=NUM_ROUNDS, timeout=600, evaluate_fn=after)


def simulate(
    server_app: Any, client_app: Any, clients: int, num_workers: int = NUM_WORKERS, **options: Any
) -> None:
    import logging

    import ray
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    ray.init(
        num_cpus=num_workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **options,
    )
    run_simulation(
        server_app,
        client_app,
        clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
