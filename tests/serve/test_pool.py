"""The worker pool: bounded in what runs, what waits, and for how long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from stfm_pipeline.serve.pool import Busy, Hold, Pool


async def run(pool: Pool, work: Callable[[], Any], seconds: float) -> Any:
    async def nothing(_: Hold) -> None:
        pass

    return await pool.run(nothing, lambda _: work(), seconds)


def test_so_many_run_so_many_wait_and_the_next_is_sent_away() -> None:
    pool, gate = Pool(workers=2, queue=1, room=0), threading.Event()

    async def main() -> None:
        taken = [asyncio.create_task(run(pool, gate.wait, 30)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert pool.waiting == 1
        with pytest.raises(Busy):
            await run(pool, gate.wait, 30)
        gate.set()
        assert await asyncio.gather(*taken) == [True] * 3
        await asyncio.sleep(0.05)
        assert (pool.taken, pool.waiting) == (0, 0)

    asyncio.run(main())
    pool.close()


def test_what_waited_too_long_never_runs_and_what_runs_keeps_its_place() -> None:
    pool, gate, ran = Pool(workers=1, queue=1, room=0), threading.Event(), []

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.gather(run(pool, gate.wait, 0.1), run(pool, lambda: ran.append(1), 0.1))
        await asyncio.sleep(0.2)
        assert pool.taken == 1, "it cannot be stopped"
        gate.set()
        await asyncio.sleep(0.2)
        assert pool.taken == 0

    asyncio.run(main())
    pool.close()
    assert ran == []


def test_an_error_in_the_work_is_the_callers() -> None:
    pool = Pool(workers=1, queue=0, room=0)

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await run(pool, lambda: 1 // 0, 5)
            await asyncio.sleep(0.05)

    asyncio.run(main())
    pool.close()


def test_what_is_fetched_has_its_place_and_its_bytes_before_and_until_it_is_done() -> None:
    pool, gate = Pool(workers=1, queue=2, room=100), threading.Event()

    async def main() -> None:
        arrives = asyncio.Event()

        async def fetch(hold: Hold, size: int = 60) -> int:
            hold(size)
            await arrives.wait()
            return size

        def work(size: int) -> int:
            gate.wait()
            return size

        first = asyncio.create_task(pool.run(fetch, work, 30))
        await asyncio.sleep(0.05)
        assert (pool.taken, pool.held) == (1, 60)
        with pytest.raises(Busy):
            await pool.run(fetch, work, 30)
        second = asyncio.create_task(pool.run(lambda hold: fetch(hold, 40), work, 30))
        lost = asyncio.create_task(pool.run(lambda hold: fetch(hold, 0), work, 30))
        await asyncio.sleep(0.05)
        assert (pool.taken, pool.held) == (3, 100)
        with pytest.raises(Busy):
            await pool.run(lambda hold: fetch(hold, 0), work, 30)
        lost.cancel()
        arrives.set()
        await asyncio.sleep(0.05)
        assert (pool.taken, pool.held) == (2, 100), "until they are worked on, and longer"
        gate.set()
        assert await asyncio.gather(first, second) == [60, 40]
        await asyncio.sleep(0.05)
        assert (pool.taken, pool.held) == (0, 0)

    asyncio.run(main())
    pool.close()
