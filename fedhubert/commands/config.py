"""``fedhubert config``: a key of the configuration explained, the keys of a group, or all."""

import argparse
import sys
from shutil import get_terminal_size

from fedhubert.config.explain import explain, markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's argument."""
    parser.add_argument(
        "key",
        metavar="KEY",
        nargs="?",
        default="",
        help="a key or a group: client.lr, federated (default: all)",
    )
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the keys as tables in Markdown, as in conf/README.md",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``fedhubert config``; a list is cut to a terminal's width, and whole in a file or
    pipe.

    Raises:
        ConfigError: there is no such key.
    """
    if arguments.markdown:
        print(markdown(arguments.key))
        return 0
    print(explain(arguments.key, get_terminal_size().columns if sys.stdout.isatty() else None))
    return 0
