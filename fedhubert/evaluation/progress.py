"""Progress over utterances: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedhubert.evaluation.study import ProgressBar

_LINE_EVERY_S = 10.0


class ProgressBars:
    """Passes over utterances, one after the other, each with its own bar or lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> "ProgressBars":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, name: str, total: int) -> ProgressBar:
        """Begin a pass over ``total`` utterances."""
        return (
            _TerminalBar(self._bar, name, total)
            if self._bar
            else _LoggedProgress(self._console, name, total)
        )


class _TerminalBar(ProgressBar):
    def __init__(self, bar: Progress, name: str, total: int) -> None:
        self._bar, self._task = bar, bar.add_task(name, total=total)

    def __call__(self) -> None:
        self._bar.advance(self._task)


class _LoggedProgress(ProgressBar):
    """A line at the start, and one every ten seconds."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total, self._done = console, name, total, 0
        self._last = time.monotonic()
        self._say()

    def __call__(self) -> None:
        self._done += 1
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            self._say()

    def _say(self) -> None:
        self._console.print(
            f"{self._name}: {self._done} of {self._total} utterances",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
