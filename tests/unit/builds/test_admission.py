"""Shares of the workers: the bounds of one client, and the rest for other clients."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from model_factory.errors import BusyError
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.fair_shares import Claim
from model_factory_server.observe.metrics import Metrics
from model_factory_server.settings.server_settings import COPIES, LimitSettings


def test_one_client_leaves_workers_to_others() -> None:
    async def scenario() -> None:
        admission = Admission(LimitSettings(max_builds_per_client=1, max_queue_per_client=2), 2)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.worker(Claim("greedy")))
            waiting = [asyncio.create_task(stack.enter_async_context(admission.worker(Claim("greedy")))) for _ in "12"]
            await asyncio.sleep(0)
            assert admission.waiting == 2
            with pytest.raises(
                BusyError, match="this client has 2 builds waiting; this server allows 2 waiting builds per client"
            ):
                await stack.enter_async_context(admission.worker(Claim("greedy")))
            async with asyncio.timeout(1), admission.worker(Claim("modest")):  # not behind what greedy waits for
                pass
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert admission.waiting == 0
        async with asyncio.timeout(1), admission.worker(Claim("greedy")):
            assert admission._workers.held_by("greedy") == 1
        assert not admission._workers._held

    asyncio.run(scenario())


def test_the_queue_of_all_has_an_end() -> None:
    async def scenario() -> None:
        admission = Admission(LimitSettings(max_queue=1), 1)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.worker(Claim("a")))
            waiting = asyncio.create_task(stack.enter_async_context(admission.worker(Claim("b"))))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="1 builds are waiting; this server allows 1 waiting builds"):
                await stack.enter_async_context(admission.worker(Claim("c")))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert not admission._workers._held
        assert not admission._workers._queues

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
    assert admission._rpcs._counts == {}


def test_held_memory_is_measured() -> None:
    async def scenario() -> None:
        admission, metrics = Admission(LimitSettings(), 1), Metrics()
        metrics.watch_memory("responses", admission.responses)
        claims = [await admission.response(client, 1000) for client in ("first", "second")]
        held = COPIES * 2000
        assert metrics.registry.get_sample_value("model_factory_held_bytes", {"kind": "responses"}) == held
        for claim in claims:
            claim.release()
        assert metrics.registry.get_sample_value("model_factory_held_bytes", {"kind": "responses"}) == 0

    asyncio.run(scenario())
