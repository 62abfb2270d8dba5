"""What a person sees of a run: log lines in the terminal and in the run's log file, and results."""

import logging
import os
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from fedhubert import live

LOGGER, TERMINAL_ONLY, FILE_ONLY = "fedhubert", "fedhubert.terminal", "fedhubert.file"
"""Loggers of all lines; of those that the run's log file does not get, which is passed on; and of
those that only it gets."""


class _PlainHandler(logging.Handler):
    """Lines where there is no terminal, to wherever standard error leads."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=live.terminal().file, flush=True)
        except OSError:  # whoever read them has gone: the run goes on
            self.handleError(record)


def log_to_terminal(*, verbose: bool = False) -> Console:
    """Send the project's log lines to standard error; returns its console."""
    console = live.terminal()
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate, logger.disabled = False, False  # Hydra's sweeps disable loggers that exist
    for name in (TERMINAL_ONLY, FILE_ONLY):
        logging.getLogger(name).disabled = False
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(
            console=console,
            show_level=False,
            show_path=False,
            rich_tracebacks=False,
            log_time_format="%H:%M:%S",
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = _PlainHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: record.name != FILE_ONLY)
    logger.handlers = [handler]
    return console


def output_console(width: int) -> Console:
    """Return a console for results on standard output, ``width`` columns wide where that is no
    terminal; the live line makes room for them."""
    live.hide()
    console = Console()
    return console if console.is_terminal else Console(width=width)


def near(path: Path) -> str:
    """Return a path as it is named from here, where that is shorter."""
    absolute = str(path.absolute())
    below = os.path.relpath(absolute)
    return below if len(below) < len(absolute) and not below.startswith("..") else absolute


def log_to_file(path: Path) -> logging.Handler:
    """Also append the project's log lines to ``path``; close the returned handler with
    :func:`stop_logging_to`."""
    handler = logging.FileHandler(path)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    handler.addFilter(lambda record: record.name != TERMINAL_ONLY)
    logger = logging.getLogger(LOGGER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


def stop_logging_to(handler: logging.Handler) -> None:
    logging.getLogger(LOGGER).removeHandler(handler)
    handler.close()
