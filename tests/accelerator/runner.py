"""Runs the steps: each in a process and a session of its own, with a time limit; what fails is recorded and the next one runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.accelerator.figures import TAIL, append, rows
from tests.accelerator.steps import LEARNING_S, STEPS, Step

ROOT = Path(__file__).parents[2]
SKIPPED = 77
"""Exit status of a step that needs what is not there; the last line it printed says what."""
_MARGIN_S = 8.0
"""Kept at the end for the table, and for what is slow to die."""
_LEAST_S = 10.0


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    device: str
    corpus: Path | None
    minutes: float
    quick: bool


class Runner:
    """Runs steps until the minutes are over."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ends = time.monotonic() + 60.0 * options.minutes - _MARGIN_S
        self._process: subprocess.Popen[str] | None = None

    def run(self, steps: Sequence[Step]) -> bool:
        """Run ``steps`` in order, write the table, and return whether none failed."""
        self._options.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, self._stopped)
        statuses = [self._step(step, kept_s=self._kept(step, steps)) for step in steps]
        text = table(self._options.out)
        (self._options.out / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
        return "failed" not in statuses

    def _kept(self, step: Step, steps: Sequence[Step]) -> float:
        """Return the seconds that ``step`` must leave to the learning at the end."""
        last = not self._options.quick and step is not steps[-1] and steps[-1].name == "learning"
        return min(LEARNING_S, 20.0 * self._options.minutes) if last else 0.0

    def _step(self, step: Step, kept_s: float) -> str:
        left = self._ends - time.monotonic() - kept_s
        limit = min(step.quick_s if self._options.quick else step.limit_s, left)
        if limit < _LEAST_S:
            reason = f"no time is left of --minutes {self._options.minutes:g}"
            append(self._options.out, step=step.name, status="skipped", seconds=0.0, reason=reason)
            return "skipped"
        print(f"--- {step.name}: at most {limit:.0f} s", flush=True)
        log, started = self._options.out / f"{step.name}.log", time.monotonic()
        code = self._alone(step, limit, log)
        seconds = round(time.monotonic() - started, 1)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        row: dict[str, Any] = {"step": step.name, "seconds": seconds}
        if code == 0:
            row["status"] = "ok"
        elif code == SKIPPED:
            row |= {"status": "skipped", "reason": lines[-1] if lines else ""}
        else:
            reason = f"more than {limit:.0f} s" if code is None else f"ended with {code}"
            row |= {"status": "failed", "reason": reason, "tail": lines[-TAIL:]}
        append(self._options.out, **row)
        print(
            "\n".join(
                [
                    *lines[-TAIL:],
                    f"--- {step.name}: {row['status']} in {seconds:g} s {row.get('reason', '')}",
                ]
            ),
            flush=True,
        )
        return str(row["status"])

    def _alone(self, step: Step, limit: float, log: Path) -> int | None:
        """Run a step with all that it starts, and return its exit status, or None where it took too long."""
        options = self._options
        command = [
            sys.executable,
            "-m",
            "tests.accelerator",
            "--out",
            str(options.out),
            "--device",
            options.device,
        ]
        command += ["--step", step.name, "--seconds", f"{limit:.1f}"]
        command += ["--quick"] if options.quick else []
        command += ["--corpus", str(options.corpus)] if options.corpus else []
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # The cache folder is the run's own: nothing of the machine's user is seen or left.
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "FEDHUBERT_CACHE": str(options.out / "cache"),
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                return self._process.wait(limit)
            except subprocess.TimeoutExpired:
                return None
            finally:
                self._end_session()

    def _end_session(self) -> None:
        """End the step and whatever it has left running."""
        process = self._process
        if process is None:
            return
        for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 2.0)):
            try:
                os.killpg(process.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        self._end_session()
        raise SystemExit(128 + number)


def select(names: str | None) -> list[Step]:
    """Return the steps of a comma-separated list, in their own order; raises ``SystemExit`` for a name that is none."""
    if names is None:
        return list(STEPS)
    wanted = set(filter(None, names.split(",")))
    unknown = wanted - {step.name for step in STEPS}
    if unknown:
        raise SystemExit(f"--only {','.join(sorted(unknown))}: no such step; --list shows them")
    return [step for step in STEPS if step.name in wanted]


def table(out: Path) -> str:
    """Return all figures as text, and how each step ended."""
    lines = []
    written = rows(out)
    for step in STEPS:
        own = [row for row in written if row["step"] == step.name]
        ends = [row for row in own if "status" in row and "part" not in row]
        if not own:
            continue
        ended = ends[-1] if ends else {"status": "not finished", "seconds": 0.0}
        lines.append(
            f"{step.name}: {ended['status']} ({ended['seconds']:g} s) {ended.get('reason', '')}".rstrip()
        )
        for row in own:
            if "figure" in row:
                lines.append(f"    {row['figure']:<86} {row['value']!s:>12} {row['unit']}")
            elif "part" in row:
                lines.append(f"    {row['part']:<86} {row['status']:>12} {row['reason']}")
    return "\n".join(lines)
