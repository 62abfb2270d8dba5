"""Progress over utterances: the live line on a terminal, plain lines elsewhere."""

import time

from fedhubert import live
from fedhubert.evaluation.study import ProgressBar

_LINE_EVERY_S = 10.0


def say_progress(name: str, total: int) -> ProgressBar:
    """Begin a pass over ``total`` utterances."""
    live.doing(name)
    live.counting(total, "utterances")
    return _Passed() if live.terminal().is_terminal else _LoggedProgress(name, total)


class _Passed(ProgressBar):
    def __call__(self) -> None:
        live.done()


class _LoggedProgress(ProgressBar):
    """A line at the start, and one every ten seconds."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._last = time.monotonic()
        self._say()

    def __call__(self) -> None:
        self._done += 1
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            self._say()

    def _say(self) -> None:
        live.terminal().print(
            f"{self._name}: {self._done} of {self._total} utterances",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
