"""Parses the configs of requests: small configs at once, all others in processes, with turns among clients."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from model_factory.config import ConfigBounds
from model_factory.environment import environment
from model_factory.errors import LimitError, ServerError, UnavailableError
from model_factory.limits import KIB
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.builds.fair_shares import Claim, FairShares
from model_factory_server.parsing.parse_process import (
    LENGTHS_BYTES,
    command,
    decode_answer,
    decode_lengths,
    encode_frame,
)
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.messages import decode_message
from model_factory_server.worker.sandbox import HELPERS

_AT_ONCE_BYTES = 2 * KIB
"""Configs up to this size take less time than a message to another process and back."""

_LANES = (32 * KIB,)
"""Bounds on the configs of each process but the last: a config never waits for a much larger config."""

_ATTEMPTS = 2  # the process may have been killed
_PARSE_SECONDS = 60.0  # the largest config takes 3 s


class ConfigParser:
    """Parses configs, one at a time in each process; clients take turns."""

    def __init__(self, settings: Settings) -> None:
        limits = settings.limits
        self._bounds = ConfigBounds(
            max_bytes=limits.max_config_bytes, max_values=limits.max_values, max_nesting=limits.max_nesting
        )
        allows = settings.isolation.allows_variable
        variables = {name: value for name, value in environment().items() if allows(name)}
        self._lanes = [_Lane(self._bounds, variables) for _ in (*_LANES, None)]

    async def parse(self, data: bytes, client: str) -> CheckedConfig:
        """Return a checked config.

        Raises:
            LimitError: the config exceeds a limit.
            ConfigError: the config is wrong.
            ServerError: the process cannot be started.
        """
        if len(data) <= _AT_ONCE_BYTES:
            return CheckedConfig.parse(data, self._bounds)
        self._bounds.check_bytes(len(data))
        lane = self._lanes[sum(len(data) > bound for bound in _LANES)]
        return await lane.parse(data, client)

    async def close(self) -> None:
        """End the processes."""
        for lane in self._lanes:
            await lane.close()


class _Lane:
    """A process, started for the first config and after its end, and the queue for the process."""

    def __init__(self, bounds: ConfigBounds, variables: Mapping[str, str]) -> None:
        self._bounds = bounds
        self._variables = variables
        self._turns = FairShares(1, 1)
        self._process: asyncio.subprocess.Process | None = None
        self._is_closed = False

    async def close(self) -> None:
        self._is_closed = True
        await self.end()

    async def parse(self, data: bytes, client: str) -> CheckedConfig:
        claim = Claim(client)
        await self._turns.acquire(claim)
        # A cancelled request leaves no half message in the pipes: the turn lasts until the answer.
        parsing = asyncio.create_task(self._parse(data))
        parsing.add_done_callback(lambda task: task.cancelled() or task.exception())
        parsing.add_done_callback(lambda _task: claim.release())
        return await asyncio.shield(parsing)

    async def _parse(self, data: bytes) -> CheckedConfig:
        for _ in range(_ATTEMPTS):
            try:
                async with asyncio.timeout(_PARSE_SECONDS):
                    return await self._exchange(data)
            except TimeoutError:
                await self.end()
                raise LimitError(f"parsing the config took longer than {_PARSE_SECONDS:g} seconds") from None
            except (OSError, asyncio.IncompleteReadError):
                await self.end()
        raise ServerError(
            "the process that parses configs has ended. Remedy: send the request again; if the error remains, the "
            "server's machine may be out of memory or of processes"
        )

    async def _exchange(self, data: bytes) -> CheckedConfig:
        if self._is_closed:
            raise UnavailableError("the server is stopping")
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *command(self._bounds),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=self._variables,
                start_new_session=True,  # Ctrl-C in a terminal reaches the server alone
            )
            HELPERS.add(self._process.pid)
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(encode_frame(data))
        await requests.drain()
        head_bytes, wire_bytes = decode_lengths(await answers.readexactly(LENGTHS_BYTES))
        head = decode_message(await answers.readexactly(head_bytes))
        return decode_answer(head, await answers.readexactly(wire_bytes))

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            HELPERS.discard(process.pid)
