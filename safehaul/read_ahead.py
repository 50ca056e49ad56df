"""Does one thing to many items with several threads, and gives the results in the items' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def read_ahead(
    pool: ThreadPoolExecutor, work: Callable[[ItemT], ResultT], items: Iterable[ItemT], limit: int
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yield each item with its result, `limit` of them under way or waiting at most. Raises what `work` raises."""
    waiting: deque[tuple[ItemT, Future[ResultT]]] = deque()
    source = iter(items)
    try:
        while True:
            waiting.extend((item, pool.submit(work, item)) for item in islice(source, limit - len(waiting)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
