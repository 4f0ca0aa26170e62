"""Shares of a capacity: turns of clients, joined claims, claims that are given up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from model_factory_server.builds.fair_shares import Claim, FairShares, FairThreads
from model_factory_server.builds.in_flight import InFlightJobs
from model_factory_server.builds.worker_pool import StageCallback
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import RpcContext, enter_rpc
from model_factory_server.observe.spans import Traces


@pytest.fixture
def jobs() -> InFlightJobs:
    return InFlightJobs(Metrics(), Traces())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def started(shares: FairShares, claim: Claim) -> asyncio.Task[None]:
    task = asyncio.create_task(shares.acquire(claim))
    await settle()
    return task


def held(claims: list[Claim]) -> list[bool]:
    return [claim.holder is not None for claim in claims]


def test_clients_take_turns() -> None:
    async def scenario() -> None:
        shares = FairShares(1, 1)
        first = Claim("greedy")
        await shares.acquire(first)
        queue = [Claim("greedy") for _ in range(3)]
        modest = Claim("modest")
        tasks = [await started(shares, claim) for claim in (*queue, modest)]
        order = []
        holder = first
        for _ in range(4):
            shares.release(holder)
            await settle()
            (holder,) = [claim for claim in (*queue, modest) if claim.holder]
            order.append(holder.clients[0])
        assert order.index("modest") <= 1, "behind everything that another client waits for"
        shares.release(holder)
        await asyncio.gather(*tasks)
        assert (shares.free, shares.waiting, shares._held, shares._queues) == (1, 0, {}, {})

    asyncio.run(scenario())


def test_small_claims_do_not_pass_a_large_claim_for_ever() -> None:
    async def scenario() -> None:
        shares = FairShares(10, 10)
        small = [Claim("many", 4), Claim("many", 4)]
        for claim in small:
            await shares.acquire(claim)
        large, later = Claim("one", 8), Claim("many", 2)
        tasks = [await started(shares, claim) for claim in (large, later)]
        assert held([large, later]) == [False, False]
        shares.release(small[0])
        await settle()
        assert held([large, later]) == [False, False]
        shares.release(small[1])
        await asyncio.gather(*tasks)
        assert held([large, later]) == [True, True]

    asyncio.run(scenario())


def test_a_joined_claim_takes_the_best_share() -> None:
    """It is queued for a client at its bound; another client joins, and has room."""

    async def scenario() -> None:
        shares = FairShares(2, 1)
        running, queued = Claim("greedy"), Claim("greedy")
        await shares.acquire(running)
        task = await started(shares, queued)
        assert held([queued]) == [False]
        queued.join("modest")
        await task
        assert queued.holder == "modest"
        queued.leave("modest")
        assert queued.holder == "greedy", "the job counts against a client that still waits for it"
        shares.release(queued)
        shares.release(running)
        assert (shares.free, shares._held, shares._queues) == (2, {}, {})

    asyncio.run(scenario())


def test_a_client_that_leaves_takes_its_place_in_the_queue_along() -> None:
    async def scenario() -> None:
        shares = FairShares(1, 1)
        running, queued = Claim("a"), Claim("b")
        await shares.acquire(running)
        task = await started(shares, queued)
        queued.join("c")
        queued.leave("b")
        assert (shares.waiting_of("b"), shares.waiting_of("c")) == (0, 1)
        shares.release(running)
        await task
        assert queued.holder == "c"

    asyncio.run(scenario())


def test_claims_that_are_given_up_leave_nothing() -> None:
    async def scenario() -> None:
        shares = FairShares(2, 2)
        running = Claim("a", 2)
        await shares.acquire(running)
        queued = [Claim("b", 2), Claim("c", 1)]
        tasks = [await started(shares, claim) for claim in queued]
        tasks[0].cancel()
        await settle()
        running.shrink(1)
        await tasks[1]
        assert held(queued) == [False, True]
        late = await started(shares, again := Claim("d", 2))
        running.release()
        queued[1].release()
        late.cancel()  # granted, and given up before it goes on
        with pytest.raises(asyncio.CancelledError):
            await late
        assert again.holder is None
        assert (shares.free, shares.waiting, shares._held, shares._queues) == (2, 0, {}, {})
        running.release()  # no effect a second time
        assert shares.free == 2

    asyncio.run(scenario())


def test_jobs_that_are_given_up_in_the_queue_leave_the_worker_to_others(jobs: InFlightJobs) -> None:
    """Each request is cancelled as gRPC does: first the request leaves the claim, then the job is cancelled."""

    async def scenario() -> None:
        workers = FairShares(1, 1)

        async def work(_on_stage: StageCallback, claim: Claim) -> str:
            async with workers.hold(claim):
                await asyncio.sleep(3600)
            return "done"

        requests = [asyncio.create_task(jobs.join_or_start("build", key, work, "client")) for key in "abc"]
        await settle()
        assert workers.waiting == 2
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        await settle()
        assert (workers.free, workers.waiting, workers._held, workers._queues) == (1, 0, {}, {})

    asyncio.run(scenario())


def test_one_client_leaves_threads_to_others() -> None:
    async def scenario() -> None:
        threads = FairThreads("test", 2)
        go = asyncio.Event()
        loop = asyncio.get_running_loop()

        def blocks() -> None:
            asyncio.run_coroutine_threadsafe(go.wait(), loop).result(20)

        async def of(client: str, work: Any) -> Any:
            enter_rpc(RpcContext(request_id="", method="", client=client))
            return await threads.run(work)

        greedy = [asyncio.create_task(of("greedy", blocks)) for _ in range(5)]
        await settle()
        async with asyncio.timeout(10):
            assert await asyncio.create_task(of("modest", lambda: "done")) == "done"
        go.set()
        await asyncio.gather(*greedy)

    asyncio.run(scenario())
