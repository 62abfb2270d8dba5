"""What every step is given: where to write figures, on which device, how long it may take; and how it says what it leaves out."""

import importlib
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.accelerator.figures import TAIL, append, rows


class Skipped(Exception):
    """A step, or a part of one, needs what is not there; the text says what."""


@dataclass
class Context:
    """One step's surroundings.

    Attributes:
        seconds: How long the step may take, counted from its process's start; it is killed then.
        quick: Toy sizes: whether everything still runs, not how fast.
    """

    step: str
    out: Path
    device: torch.device
    corpus: Path | None
    quick: bool
    seconds: float
    started: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds that are left to the step."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def folder(self) -> Path:
        """A folder for the step's own files."""
        path = self.out / self.step
        path.mkdir(parents=True, exist_ok=True)
        return path

    def figure(self, name: str, value: float | bool | str, unit: str = "", **more: Any) -> None:
        """Write one figure."""
        rounded = float(f"{value:.4g}") if isinstance(value, float) else value
        append(self.out, step=self.step, figure=name, value=rounded, unit=unit, **more)
        print(f"{self.step}: {name}: {rounded} {unit}", flush=True)

    def want(self, seconds: float) -> None:
        """Raise :class:`Skipped` where so much time is not left on a card; toy sizes are small enough for what there is."""
        if not self.quick and self.left < seconds:
            raise Skipped(f"{self.left:.0f} s are left, {seconds:g} wanted")

    def found(self, step: str, name: str) -> float | None:
        """Return a number that an earlier step has written, if it has."""
        values = [
            row["value"]
            for row in rows(self.out)
            if row["step"] == step and row.get("figure") == name
        ]
        return float(values[-1]) if values else None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part that may fail without the others: what it lacks is recorded as skipped, what breaks as failed (see :meth:`close`)."""
        try:
            yield
        except Skipped as reason:
            self._record(name, "skipped", str(reason))
        except torch.OutOfMemoryError as error:
            self._record(
                name,
                "skipped",
                "does not fit into the device's memory: " + str(error).split(". ")[0],
            )
        except Exception as error:
            traceback.print_exc()
            self._record(
                name,
                "failed",
                f"{type(error).__name__}: {error}"[:500],
                traceback.format_exc().splitlines()[-TAIL:],
            )
            self.failed.append(name)
        finally:
            free_memory(self.device)

    def _record(self, name: str, status: str, reason: str, tail: list[str] | None = None) -> None:
        append(
            self.out,
            step=self.step,
            part=name,
            status=status,
            reason=reason,
            **({"tail": tail} if tail else {}),
        )
        print(f"{self.step}: {name}: {status}: {reason}", flush=True)

    def close(self) -> None:
        """Raise if a part has failed: the step has, too."""
        if self.failed:
            raise RuntimeError("failed: " + ", ".join(self.failed))


def free_memory(device: torch.device) -> None:
    """Give back what a part has left on the device."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def need(module: str, package: str | None = None) -> Any:
    """Import an optional module; raises :class:`Skipped`, naming its ``package``, where it cannot be imported for whatever reason."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise Skipped(
            f"{package or module} cannot be imported here ({type(error).__name__}: {error})"
        ) from None


def check(true: bool, what: str) -> None:
    """Raise unless ``true``: a figure outside its bounds fails its part."""
    if not true:
        raise AssertionError(what)
