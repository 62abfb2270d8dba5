"""Freed memory is kept where large messages pass through."""

import platform
import subprocess
import sys

import pytest

PASSING = """
import resource, sys, threading
from fedhubert.memory import keep_freed

if sys.argv[1] == "kept":
    keep_freed()

def pass_on():
    for _ in range(10):
        received = bytearray(12 * 2**20)
        kept = bytes(received)
        sent = bytes(memoryview(received))
        del received, kept, sent

for turn in range(2):  # what the first has taken, the second finds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    threads = [threading.Thread(target=pass_on) for _ in range(4)]
    [each.start() for each in threads]
    [each.join() for each in threads]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_pieces_that_pass_through_threads_are_not_mapped_anew() -> None:
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", PASSING, way], text=True))
        for way in ("as it is", "kept")
    }
    assert faults["kept"] < 0.01 * faults["as it is"], faults
