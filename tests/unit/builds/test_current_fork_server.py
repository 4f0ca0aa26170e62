"""When a fork server is replaced, and who waits for the new one."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, cast

import pytest

from model_factory_server.builds import current_fork_server
from model_factory_server.builds.current_fork_server import CurrentForkServer


class Started:
    """A fork server without a process, ready when the test says so."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.starts_well = True
        self.has_ended = False
        self.is_retired = self.is_closed = False
        self.pid = 0

    def wait_until_ready(self) -> bool:
        assert self.ready.wait(10)
        return self.starts_well

    def retire(self) -> None:
        self.is_retired = True

    def close(self) -> None:
        self.is_closed = True


class Starts:
    """Notes the fork servers."""

    def __init__(self) -> None:
        self.all: list[Started] = []
        self.times: list[float] = []

    def __call__(self) -> Any:
        self.all.append(Started())
        self.times.append(time.monotonic())
        return cast("Any", self.all[-1])


@pytest.fixture(autouse=True)
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_fork_server, "kill_children", lambda **_: False)


async def until_started(starts: Starts, number: int) -> None:
    while len(starts.all) < number:  # noqa: ASYNC110  one task of many is waited for
        await asyncio.sleep(0.001)


def test_only_the_client_of_the_crash_waits() -> None:
    starts = Starts()

    replaced: list[None] = []

    async def crash() -> None:
        current = CurrentForkServer(starts, lambda: replaced.append(None))
        old = current.get()
        current.note_crash(old, ["hostile"])
        waiting = asyncio.create_task(current.wait_for(["hostile"]))
        await until_started(starts, 2)
        await current.wait_for(["honest"])
        assert current.is_ready_for(["honest"])
        assert current.get() is old, "others use the old one meanwhile"
        assert not starts.all[0].is_retired
        assert not waiting.done()
        starts.all[1].ready.set()
        await asyncio.wait_for(waiting, 10)
        assert current.is_ready_for(["hostile"])
        assert current.get() is starts.all[1]
        assert starts.all[0].is_retired
        current.note_crash(old, ["late"])  # a build in progress in the old one
        assert current.is_ready_for(["late"])
        current.close()

    asyncio.run(crash())
    assert len(starts.all) == 2
    assert starts.all[1].is_closed
    assert len(replaced) == 1


def test_crashes_at_the_same_time_have_one_replacement() -> None:
    starts = Starts()

    async def crash() -> None:
        current = CurrentForkServer(starts)
        for client in ("a", "b", "a"):
            current.note_crash(current.get(), [client])
        await until_started(starts, 2)
        starts.all[1].ready.set()
        await asyncio.gather(current.wait_for(["a"]), current.wait_for(["b"]))

    asyncio.run(crash())
    assert len(starts.all) == 2


def test_many_crashes_are_replaced_more_and_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        delays.append(seconds)
        await sleep(0)

    starts = Starts()

    async def crash() -> None:
        current = CurrentForkServer(starts)
        for number in range(2, 16):
            current.note_crash(current.get(), ["hostile"])
            monkeypatch.setattr(asyncio, "sleep", noted)
            while len(starts.all) < number:
                await sleep(0.001)
            starts.all[-1].ready.set()
            await current.wait_for(["hostile"])
            assert current.get() is starts.all[-1]

    asyncio.run(crash())
    assert delays[:5] == [0.0] * 5
    assert delays == sorted(delays)
    assert delays[-1] == 60.0


def test_a_replacement_that_does_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_fork_server, "_MAX_DELAY", 0.01)
    starts = Starts()

    async def crash() -> None:
        current = CurrentForkServer(starts)
        old = current.get()
        current.note_crash(old, ["client"])
        await until_started(starts, 2)
        starts.all[1].starts_well = False
        starts.all[1].ready.set()
        await until_started(starts, 3)
        assert current.get() is old
        assert not current.is_ready_for(["client"])
        starts.all[2].ready.set()
        await current.wait_for(["client"])
        assert current.get() is starts.all[2]

    asyncio.run(crash())


def test_a_fork_server_that_ended_is_replaced_at_once() -> None:
    starts = Starts()

    async def use() -> None:
        current = CurrentForkServer(starts)
        starts.all[0].has_ended = True
        assert current.get() is starts.all[1]
        assert current.get() is starts.all[1]

    asyncio.run(use())


def test_a_fork_server_that_ends_during_a_replacement() -> None:
    starts = Starts()

    async def use() -> None:
        current = CurrentForkServer(starts)
        current.note_crash(current.get(), ["client"])
        await until_started(starts, 2)
        starts.all[0].has_ended = True
        assert current.get() is starts.all[2], "the second one is not ready yet"
        assert current.is_ready_for(["client"]), "the third one has another layout, too"
        starts.all[1].ready.set()
        await current.wait_for(["client"])
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if current.get() is starts.all[1]:
                break
        assert current.get() is starts.all[1]
        assert starts.all[2].is_retired

    asyncio.run(use())


def test_a_build_without_clients_does_not_wait() -> None:
    assert CurrentForkServer(Starts()).is_ready_for([])
