"""So many forecasts at once, so many that wait, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """Every worker is at work and every place in the queue is taken."""


class Pool:
    """`workers` threads and `queue` places before them; torch takes what cores are left over for each worker."""

    def __init__(self, workers: int, queue: int) -> None:
        import os

        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = workers or cores
        self.places = self.workers + queue
        self.taken = 0
        # More threads than cores would only take turns.
        torch.set_num_threads(max(1, cores // self.workers))
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="forecast")

    @property
    def waiting(self) -> int:
        return max(0, self.taken - self.workers)

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns; `Busy` at once where there is no place, `TimeoutError` after `seconds`.

        Work that has begun cannot be stopped: its place stays taken until it ends.
        """
        if self.taken >= self.places:
            raise Busy
        self.taken += 1
        loop = asyncio.get_running_loop()

        def over(_: Future[T]) -> None:
            loop.call_soon_threadsafe(self._leave)

        future = self._threads.submit(work)
        future.add_done_callback(over)
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)

    def _leave(self) -> None:
        self.taken -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
