"""The worker pool: bounded in what runs, what waits, and for how long."""

from __future__ import annotations

import asyncio
import threading

import pytest

from stfm_pipeline.serve.pool import Busy, Pool


def test_so_many_run_so_many_wait_and_the_next_is_sent_away() -> None:
    pool, gate = Pool(workers=2, queue=1), threading.Event()

    async def main() -> None:
        taken = [asyncio.create_task(pool.run(gate.wait, 30)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert pool.waiting == 1
        with pytest.raises(Busy):
            await pool.run(gate.wait, 30)
        gate.set()
        assert await asyncio.gather(*taken) == [True] * 3
        await asyncio.sleep(0.05)
        assert (pool.taken, pool.waiting) == (0, 0)

    asyncio.run(main())
    pool.close()


def test_what_waited_too_long_never_runs_and_what_runs_keeps_its_place() -> None:
    pool, gate, ran = Pool(workers=1, queue=1), threading.Event(), []

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.gather(pool.run(gate.wait, 0.1), pool.run(lambda: ran.append(1), 0.1))
        await asyncio.sleep(0.2)
        assert pool.taken == 1, "it cannot be stopped"
        gate.set()
        await asyncio.sleep(0.2)
        assert pool.taken == 0

    asyncio.run(main())
    pool.close()
    assert ran == []


def test_an_error_in_the_work_is_the_callers() -> None:
    pool = Pool(workers=1, queue=0)

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await pool.run(lambda: 1 // 0, 5)
            await asyncio.sleep(0.05)

    asyncio.run(main())
    pool.close()
