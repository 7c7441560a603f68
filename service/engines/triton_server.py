"""The connection to one Triton server, and what is known of it: reachable or not, and since when.

A poll each second asks whether the server lives; every fifth reads what it has loaded. So a request that comes while
the server is gone is told at once, a server that came back is used again within two seconds, and a model that was
replaced is noticed by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from service.engines.triton_catalogue import Catalogue, read_catalogue
from service.engines.triton_errors import code_of, unreachable
from service.errors import EngineUnavailable, ServiceError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 1.5
# Polls without an answer (not: refused ones) after which a server counts as stuck; a busy machine misses one or two.
_MISSED_POLLS = 3
_POLLS_PER_LIST = 5
_POLLS_PER_CONFIGS = 30
_LOOPBACK = ("localhost", "127.", "[::1]")


def channel_options(local: bool) -> list[tuple[str, Any]]:
    """gRPC's settings of the channel."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # For connections that vanish without a word. More than two pings without data between them make servers close
        # the connection (too_many_pings); idle ones are not pinged for the same reason, the watch keeps them busy.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 2),
        # gRPC would wait 1 s at first and 120 s at last before it connects again, and 20 s for a host that is silent.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.min_reconnect_backoff_ms", 800),
        # A container that was started anew has another address; the default looks it up every 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # The variables http_proxy and https_proxy are for the way out; Triton is inside.
        ("grpc.enable_http_proxy", 0),
    ]
    if not local:
        # A name may stand for several servers (a headless Kubernetes service); gRPC's default uses one of them.
        options.append(("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})))
    return options


class TritonServer:
    """One channel, a watch over it, and the catalogue of models.

    Attributes:
        name: how messages call it.
        local: whether the address is this machine's own.
        client: tritonclient's; None before :meth:`connect`.
        catalogue: what is loaded, as far as known.
        gone: why the server cannot be asked now; None while it answers.
        silent: it is there no more or stands still: polls get no answer at all, not even a refusal. What is under way
            at a server that merely stops (``gone``) is still answered; at this one nothing is.
    """

    def __init__(
        self,
        url: str,
        on_return: Callable[[], None],
        on_poll: Callable[[], Awaitable[None]],
        on_silence: Callable[[], None],
    ) -> None:
        """``on_return`` is called when the server was gone and answers again, ``on_poll`` after every answered poll.

        ``on_silence`` is called after each unanswered poll from the one that makes it ``silent``.
        """
        self.name = f"Triton at {url}"
        self.local = url.startswith(_LOOPBACK)
        self.client: Any = None
        self.catalogue = Catalogue()
        self.gone: str | None = "the engine is not started"
        self.silent = False
        self._url = url
        self._on_return = on_return
        self._on_poll = on_poll
        self._on_silence = on_silence
        self._watch: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._reading = asyncio.Lock()
        self._read_at = -math.inf

    async def connect(self) -> None:
        """Connect, read what is loaded, and watch from now on. Raises EngineUnavailable."""
        if self.client is None:
            self.client = aio.InferenceServerClient(self._url, channel_args=channel_options(self.local))
        await self.read(configs=True)
        self.gone = None
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._keep_watch())

    async def read(self, *, configs: bool) -> None:
        """Read the catalogue. Raises EngineUnavailable with the reason and the address."""
        asked = time.monotonic()
        try:
            catalogue = await read_catalogue(self.client, _ANSWER_SECONDS, self.name, self.catalogue, configs=configs)
        except InferenceServerException as error:
            raise EngineUnavailable(unreachable(error, self.name)) from error
        if not catalogue.models:
            troubles = "; ".join(f"{name}: {why}" for name, why in sorted(catalogue.troubles.items()))
            raise EngineUnavailable(f"{self.name} has no model loaded{troubles and f' ({troubles})'}")
        self.catalogue = catalogue
        if configs:
            self._read_at = asked

    async def read_since(self, moment: float) -> None:
        """Read the catalogue unless that was done after ``moment`` (``time.monotonic``).

        For a request that was refused: has its model been replaced? Failures are left to the watch.
        """
        async with self._reading:
            if self._read_at < moment:
                with contextlib.suppress(EngineUnavailable):
                    await self.read(configs=True)

    async def not_ready(self) -> list[str]:
        """Models that do not answer, sorted; empty when all do. Raises EngineUnavailable."""
        names = sorted(self.catalogue.models)
        try:
            answers = await asyncio.gather(
                *(self.client.is_model_ready(name, client_timeout=_ANSWER_SECONDS) for name in names)
            )
        except InferenceServerException as error:
            raise EngineUnavailable(unreachable(error, self.name)) from error
        absent = [name for name, ready in zip(names, answers, strict=True) if not ready]
        return sorted({*absent, *self.catalogue.troubles})

    def look(self) -> None:
        """Poll now: a request met something that does not fit what is known."""
        self._wake.set()

    async def close(self) -> None:
        """End the watch and the channel."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self.client is not None:
            await self.client.close()
            self.client = None

    async def _keep_watch(self) -> None:
        missed, unanswered, polls, since = 0, 0, 0, time.monotonic()
        while True:
            woken = await self._pause()
            try:
                await self.client.is_server_live(client_timeout=_ANSWER_SECONDS)
                if self.gone is not None or woken or polls % _POLLS_PER_LIST == 0:
                    await self.read(configs=self.gone is not None or woken or polls % _POLLS_PER_CONFIGS == 0)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                missed += 1
                stuck = isinstance(error, InferenceServerException) and code_of(error) == "DEADLINE_EXCEEDED"
                if self.gone is None and not (stuck and missed < _MISSED_POLLS):
                    since = time.monotonic()
                    self.gone = self._reason(error)
                    logger.warning("%s", self.gone)
                elif self.gone is not None:
                    self.gone = self._reason(error)
                unanswered = unanswered + 1 if stuck else 0
                self.silent = unanswered >= _MISSED_POLLS
                if self.silent:
                    self._on_silence()
                continue
            polls, missed, unanswered, self.silent = polls + 1, 0, 0, False
            await self._on_poll()
            if self.gone is not None:
                self.gone = None
                self._on_return()
                logger.info("%s answers again, after %.1f s", self.name, time.monotonic() - since)

    async def _pause(self) -> bool:
        """Wait for the next poll; True when somebody asked for it."""
        try:
            await asyncio.wait_for(self._wake.wait(), _POLL_SECONDS)
        except asyncio.TimeoutError:
            return False
        await asyncio.sleep(0.1)  # many requests fail at a time when a server goes
        self._wake.clear()
        return True

    def _reason(self, error: Exception) -> str:
        if isinstance(error, InferenceServerException):
            return unreachable(error, self.name)
        return error.detail if isinstance(error, ServiceError) else f"{self.name}: {error!r}"
