"""So many forecasts at once, so many that wait with so many bytes, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

B = TypeVar("B")
T = TypeVar("T")
Hold = Callable[[int], None]


class Busy(Exception):
    """Every worker is at work and every place in the queue is taken, or what they hold fills the room."""


class Pool:
    """`workers` threads, `queue` places before them, `room` bytes for what all of them hold.

    torch takes what cores are left over for each worker.
    """

    def __init__(self, workers: int, queue: int, room: int) -> None:
        import os

        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = workers or cores
        self.places = self.workers + queue
        self.room = room
        self.taken = self.held = 0
        # More threads than cores would only take turns.
        torch.set_num_threads(max(1, cores // self.workers))
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="forecast")

    @property
    def waiting(self) -> int:
        return max(0, self.taken - self.workers)

    async def run(self, fetch: Callable[[Hold], Awaitable[B]], work: Callable[[B], T], seconds: float) -> T:
        """What `work` makes of what `fetch` brings; `Busy` where there is no place, `TimeoutError` after `seconds`.

        The place is taken before anything is fetched; `fetch` says by `hold(bytes)` what it keeps, before it keeps it.
        Work that has begun cannot be stopped: its place stays taken until it ends.
        """
        if self.taken >= self.places:
            raise Busy
        self.taken += 1
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            if self.held + size > self.room:
                raise Busy
            mine += size
            self.held += size

        def leave() -> None:
            self.taken -= 1
            self.held -= mine

        loop = asyncio.get_running_loop()
        try:
            future = self._threads.submit(work, await fetch(hold))
        except BaseException:
            leave()
            raise
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(leave))
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
