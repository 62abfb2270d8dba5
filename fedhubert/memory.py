"""What the allocator does with memory that was freed."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""``M_...`` of glibc's malloc.h."""

KEPT_BYTES, _MOST_IN_A_HEAP = 2**30, 2**25


def keep_freed() -> None:
    """Have this process keep freed memory, up to ``KEPT_BYTES``, for what it needs next, as
    mallopt(3) of glibc has it; elsewhere nothing changes.

    For processes through which large messages pass: threads take and give back pieces of 12 MiB
    thousands of times, and each would be mapped, filled with zeros and unmapped by the kernel.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_ARENA_MAX, 1)
    # older ones take no more than half of a heap, and would map all pieces once trimming is set
    if not mallopt(_MMAP_THRESHOLD, KEPT_BYTES):
        mallopt(_MMAP_THRESHOLD, _MOST_IN_A_HEAP)
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
