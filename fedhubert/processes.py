"""Processes that end with the one that started them."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def watch_parent() -> None:
    """Have this process, one of ``multiprocessing``'s, end as soon as its parent is gone, also in
    the middle of a job."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
