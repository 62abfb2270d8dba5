"""Work done ahead of whoever consumes it, in threads, and handed over in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def map_in_order(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    num_workers: int,
    ahead: int | None = None,
) -> Generator[ResultT, None, None]:
    """Like ``map``, in ``num_workers`` threads (0: the caller's own) that are at most ``ahead``
    results ahead of the consumer.

    ``items`` are taken in the consumer's thread. Closing the generator stops the threads, each
    after what it is doing.

    Args:
        ahead: None: twice as many as there are threads.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    limit = 2 * num_workers if ahead is None else ahead
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="fedhubert-ahead")
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
