"""Configs are parsed at once or in processes, with the same results and the same errors."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from model_factory.config import parse_config
from model_factory.errors import ConfigError, LimitError, ServerError
from model_factory_server.parsing import config_parser
from model_factory_server.parsing.config_parser import ConfigParser
from model_factory_server.settings.server_settings import LimitSettings, Settings
from support.configs import layers

T = TypeVar("T")


def run(scenario: Callable[[ConfigParser], Awaitable[T]], **limits: Any) -> T:
    async def main() -> T:
        parser = ConfigParser(Settings(limits=LimitSettings(**limits)))
        try:
            return await scenario(parser)
        finally:
            await parser.close()

    return asyncio.run(main())


def encoded(*blocks: Any, ascii_only: bool = True) -> bytes:
    return json.dumps(layers(*blocks), ensure_ascii=ascii_only, separators=(",", ":")).encode()


@pytest.mark.parametrize("count", [1, 100, 2000], ids=["at once", "process", "large"])
def test_the_result_is_that_of_the_parser(count: int) -> None:
    data = encoded(*[{"_type_": "nn.Linear", "in_features": 2, "out_features": 2, "bias": False}] * count)
    expected = parse_config(data)

    async def scenario(parser: ConfigParser) -> None:
        for _ in range(3):
            found = await parser.parse(data, "client")
            assert (found.wire, found.digest, found.order_digest) == (
                expected.wire,
                expected.digest,
                expected.order_digest,
            )

    run(scenario)


@pytest.mark.parametrize("count", [1, 100], ids=["at once", "process"])
def test_errors_are_those_of_the_parser(count: int) -> None:
    data = encoded(*[{"_type_": "nn.ReLU"}] * count, {"_type_": "é\x1b" * 9, "__x": 1}, {"args": 3})
    with pytest.raises(ConfigError) as expected:
        parse_config(data)

    async def scenario(parser: ConfigParser) -> None:
        with pytest.raises(ConfigError) as found:
            await parser.parse(data, "client")
        assert (found.value.reason, found.value.path) == (expected.value.reason, expected.value.path)
        with pytest.raises(ConfigError, match="not UTF-8"):
            await parser.parse(b"\xff" * 5000, "client")
        with pytest.raises(LimitError, match="at most 60000 bytes"):
            await parser.parse(b" " * 60001, "client")
        assert await parser.parse(encoded(*[{"_type_": "nn.ReLU"}] * 300), "client")

    run(scenario, max_config_bytes=60000)


def _below() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()]


def test_a_process_that_dies_is_replaced() -> None:
    data = encoded(*[{"_type_": "nn.ReLU"}] * 300)

    async def scenario(parser: ConfigParser) -> None:
        await parser.parse(data, "client")
        before = _below()
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        parsing = asyncio.create_task(parser.parse(data, "client"))
        await asyncio.sleep(0.1)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert (await parsing).wire == data
        assert await parser.parse(data, "client")

    run(scenario)


def test_a_config_that_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_parser, "command", lambda _bounds: ["false"])

    async def scenario(parser: ConfigParser) -> None:
        with pytest.raises(ServerError, match="has ended"):
            await parser.parse(encoded(*[{"_type_": "nn.ReLU"}] * 300), "client")

    run(scenario)


def test_a_request_that_is_given_up_disturbs_no_other() -> None:
    slow = encoded({"_type_": "nn.ReLU", "inplace": [[] for _ in range(8_000)]})
    fast = encoded(*[{"_type_": "nn.ReLU"}] * 300)

    async def scenario(parser: ConfigParser) -> None:
        await parser.parse(fast, "client")
        given_up = [asyncio.create_task(parser.parse(slow, "greedy")) for _ in range(5)]
        await asyncio.sleep(0.05)
        for task in given_up:
            task.cancel()
        assert (await parser.parse(fast, "modest")).wire == fast

    run(scenario)


def test_a_config_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_parser, "_PARSE_SECONDS", 0.01)

    async def scenario(parser: ConfigParser) -> None:
        with pytest.raises(LimitError, match="took longer"):
            await parser.parse(encoded({"_type_": "nn.ReLU", "inplace": [[] for _ in range(90_000)]}), "client")

    run(scenario)
