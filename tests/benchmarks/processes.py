"""What a deployment's processes do while a run goes on: CPU seconds of each kind, memory, and for how long all of them slept."""

import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.deployment.processes import marked_processes

PERIOD_S, LOOK_FOR_NEW_S = 0.1, 1.0
CLOCK_HZ = 100
KINDS = {
    "flwr-serverapp": "ServerApp",
    "flwr-clientapp": "ClientApps",
    "superexec": "SuperExecs",
    "superlink": "SuperLink",
    "supernode": "SuperNodes",
    "spawn_main": "site workers",
    "fedhubert site": "sites",
    "benchmarks.transport": "sites",
}
"""Words in a command line -> what the process is; the first that fits."""


@dataclass
class Sample:
    """At one time: rounds finished, CPU seconds and resident bytes by kind, and whether any thread
    wanted a processor or waited for the disk."""

    at: float
    rounds: int
    cpu: dict[str, float]
    memory: dict[str, int]
    awake: bool


@dataclass
class Watch:
    """Samples the processes that carry ``mark`` from a thread, for as long as the block lasts.

    Attributes:
        mark: Of :class:`tests.deployment.conftest.Deployment`.
        rounds: Says how many rounds are finished.
    """

    mark: str
    rounds: Callable[[], int]
    samples: list[Sample] = field(default_factory=list)
    _spent: dict[int, tuple[str, float]] = field(default_factory=dict)

    def __enter__(self) -> "Watch":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        kinds: dict[int, str] = {}
        looked = 0.0
        while not self._over.wait(PERIOD_S):
            if time.monotonic() - looked > LOOK_FOR_NEW_S:
                kinds = {pid: kind_of(command) for pid, command in marked_processes(self.mark)}
                looked = time.monotonic()
            self.samples.append(self._sample(kinds))

    def _sample(self, kinds: Mapping[int, str]) -> Sample:
        memory: defaultdict[str, int] = defaultdict(int)
        awake = False
        for pid, kind in kinds.items():
            folder = Path(f"/proc/{pid}")
            try:
                fields = _stat(folder)
                self._spent[pid] = (kind, (int(fields[11]) + int(fields[12])) / CLOCK_HZ)
                memory[kind] += int(fields[21]) * 4096
                awake = awake or any(_stat(task)[0] in "RD" for task in (folder / "task").iterdir())
            except (OSError, ProcessLookupError):  # it has just ended; what it took stays
                continue
        cpu: defaultdict[str, float] = defaultdict(float)
        for kind, seconds in self._spent.values():
            cpu[kind] += seconds
        return Sample(time.monotonic(), self.rounds(), cpu, memory, awake)

    def per_round(self) -> dict[str, object]:
        """Return the medians over the rounds, without the first: CPU seconds by kind, seconds in
        which nobody was awake; and the most memory at any time, in MB."""
        last = self.samples[-1].rounds
        found = [self._of(number) for number in range(1, last)]
        if not found:
            return {}
        kinds = sorted({kind for cpu, _ in found for kind in cpu})
        return {
            "cpu_s": {
                kind: round(statistics.median(cpu.get(kind, 0.0) for cpu, _ in found), 1)
                for kind in kinds
            },
            "cpu_s_in_all": round(statistics.median(sum(cpu.values()) for cpu, _ in found), 1),
            "asleep_s": round(statistics.median(asleep for _, asleep in found), 1),
            "most_mb": {
                kind: max(sample.memory.get(kind, 0) for sample in self.samples) // 10**6
                for kind in kinds
            },
        }

    def _of(self, number: int) -> tuple[dict[str, float], float]:
        """Return what round ``number`` took, from 0: CPU seconds by kind, and seconds asleep."""
        first = next(sample for sample in self.samples if sample.rounds >= number)
        end = next(sample for sample in self.samples if sample.rounds > number)
        within = [sample for sample in self.samples if first.at <= sample.at < end.at]
        pairs = zip(within, [*within[1:], end], strict=True)
        asleep = sum(then.at - now.at for now, then in pairs if not now.awake)
        cpu = {kind: seconds - first.cpu.get(kind, 0.0) for kind, seconds in end.cpu.items()}
        return {kind: seconds for kind, seconds in cpu.items() if seconds > 0.05}, asleep


def flower_app(name: str, config: str) -> str:
    """Return the ``pyproject.toml`` of a Flower app; ``config``: what a run may set, in TOML."""
    return f"""[project]
name = "{name}"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "{name}.server:app"
clientapp = "{name}.client:app"

[tool.flwr.app.config]
{config}
"""


def kind_of(command: str) -> str:
    return next((kind for words, kind in KINDS.items() if words in command), "others")


def lines_with(file: Path, key: str, value: str) -> int:
    """Return how many lines of a JSON-lines file have ``value`` under ``key``."""
    if not file.is_file():
        return 0
    return sum(
        json.loads(line).get(key) == value
        for line in file.read_text().splitlines()
        if line.endswith("}")
    )


def _stat(folder: Path) -> list[str]:
    """Return the fields of ``stat`` after the command's name, which may hold spaces: state first."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
