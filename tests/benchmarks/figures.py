"""What all benchmarks share: figures as JSON lines, CPU seconds of ours and the peer in turn, peak memory, a process per case."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def figure(name: str, ours: float, peer: float | None, unit: str, **more: Any) -> None:
    """Print one figure; ``ratio`` is how many times less ours is, None where ours is nothing."""
    said: dict[str, Any] = {"name": name, "ours": _rounded(ours)}
    if peer is not None:
        said |= {"peer": _rounded(peer), "ratio": _rounded(peer / ours) if ours else None}
    print(json.dumps(said | {"unit": unit, **more}), flush=True)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) < 1000 else round(value)


def in_turn(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of each side, run once to warm up and then in turn, since the machine's speed changes."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            started = time.process_time()
            side()
            if turn:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_mb() -> float:
    """Return the most memory that this process has had since :func:`memory_mb` (``ru_maxrss`` would begin at that of the process that started it)."""
    return _field("/proc/self/status", "VmHWM")


def memory_mb() -> float:
    """Return the memory that this process has now, from which on its peak counts anew."""
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): resets VmHWM
    return _field("/proc/self/status", "VmRSS")


def free_gb() -> float:
    """Return the memory that is to be had on this machine."""
    return _field("/proc/meminfo", "MemAvailable") / 1024


def _field(path: str, name: str) -> float:
    return next(
        int(line.split()[1]) / 1024
        for line in Path(path).read_text().splitlines()
        if line.startswith(name)
    )


def case_alone(module: str, *arguments: object) -> dict[str, Any]:
    """Run one case in a process of its own, as an imported module: what ``__main__`` defines travels by value, and clients could keep nothing."""
    command = [
        sys.executable,
        "-c",
        f"from {module} import main; main()",
        "case",
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}"
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(
    parser: argparse.ArgumentParser,
    case: Callable[..., Any],
    compare: Callable[[argparse.Namespace], None],
) -> None:
    """Be a benchmark's ``main``: one case in this process, as :func:`case_alone` asks for it, or else the comparison; on one thread."""
    import torch  # here, so that what starts is timed without it

    torch.set_num_threads(1)
    parser.add_argument("what", nargs="*", help="case ARGUMENTS: that case alone")
    arguments = parser.parse_args()
    if arguments.what:
        print(json.dumps(case(*arguments.what[1:])))
    else:
        compare(arguments)
