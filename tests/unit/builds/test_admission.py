"""Shares of the workers: the bounds of one client, and the rest for other clients."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from model_factory.errors import BusyError
from model_factory_server.builds.admission import Admission
from model_factory_server.settings.server_settings import LimitSettings


def test_one_client_leaves_workers_to_others() -> None:
    async def scenario() -> None:
        admission = Admission(LimitSettings(max_builds_per_client=1, max_queue_per_client=2), 2)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.worker("greedy"))
            waiting = [asyncio.create_task(stack.enter_async_context(admission.worker("greedy"))) for _ in "12"]
            await asyncio.sleep(0)
            assert admission.waiting == 2
            with pytest.raises(
                BusyError, match="this client has 2 builds waiting; this server allows 2 waiting builds per client"
            ):
                await stack.enter_async_context(admission.worker("greedy"))
            async with asyncio.timeout(1), admission.worker("modest"):  # not behind what greedy waits for
                pass
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert admission.waiting == 0
        async with asyncio.timeout(1), admission.worker("greedy"):
            assert len(admission._shares) == 1
        assert admission._shares == {}

    asyncio.run(scenario())


def test_the_queue_of_all_has_an_end() -> None:
    async def scenario() -> None:
        admission = Admission(LimitSettings(max_queue=1), 1)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.worker("a"))
            waiting = asyncio.create_task(stack.enter_async_context(admission.worker("b")))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="1 builds are waiting; this server allows 1 waiting builds"):
                await stack.enter_async_context(admission.worker("c"))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert admission._shares == {}

    asyncio.run(scenario())


def test_calls_of_one_and_of_all() -> None:
    admission = Admission(LimitSettings(max_rpcs=3, max_rpcs_per_client=2), 1)
    with admission.rpc("a"), admission.rpc("a"):
        with (
            pytest.raises(BusyError, match="this client has 2 RPCs in progress; this server allows 2"),
            admission.rpc("a"),
        ):
            pass
        with (
            admission.rpc("b"),
            pytest.raises(BusyError, match="3 RPCs are in progress; this server allows 3"),
            admission.rpc("c"),
        ):
            pass
    assert (admission.rpcs, admission._shares) == (0, {})
