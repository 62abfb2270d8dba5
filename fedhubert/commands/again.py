"""How a command ends: its exit codes, and the command that goes on, for whoever has stopped one."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedhubert.errors import FedhubertError

EXIT_ERROR, EXIT_USAGE, EXIT_RESUMABLE, EXIT_INTERRUPTED = 1, 2, 75, 130

_ASKED_TO = ("train", "central")
"""Verbs that go on only where ``resume=auto`` says so; others look for what is there."""


def unknown_option(verb: str, option: str, words: str = "overrides") -> int:
    """Say that ``verb`` has no such option; return the exit code."""
    print(
        f"fedhubert: unknown option {option}; `fedhubert {verb}` takes KEY=VALUE {words}, "
        "see --help",
        file=sys.stderr,
    )
    return EXIT_USAGE


def same_command(arguments: Sequence[str], out: str | None = None) -> str:
    """Return the command line that goes on with what ``arguments`` began; ``out``: the run's
    folder, where the arguments may not name it."""
    words = ["fedhubert", *arguments]
    if arguments[:1] and arguments[0] in _ASKED_TO:
        words = [word for word in words if not word.startswith("resume=")] + ["resume=auto"]
        if out is not None and not any(word.startswith("out=") for word in words):
            from fedhubert.reporting.console import near

            words.append(f"out={near(Path(out))}")
    return shlex.join(words)


@contextmanager
def with_command(arguments: Sequence[str], out: str | None = None) -> Iterator[None]:
    """Have the error of a run that was asked to stop say how it goes on, unless it does."""
    try:
        yield
    except FedhubertError as error:
        if error.code != "interrupted" or error.setting == "resume":
            raise
        said = f"stopped; go on with: {same_command(arguments, out)}"
        raise type(error)(said, setting="resume") from None
