"""Limits of a connection, before a request is one: what uvicorn leaves open to whoever sends slowly or without end.

uvicorn reads a request's head however long it is and takes, drops the rest of a body that was answered early for as
long as it comes, and keeps an answer for a caller who does not read it. Each would cost one slow caller nothing and
the service its memory or its descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import HeadTooLarge, InvalidRequest, RateLimited, RequestTimeout, ServiceError
from service.joined_writes import JoinedWrites
from service.problems import MEDIA_TYPE, problem_document
from service.safe_headers import DEFAULTS
from service.settings import Settings

logger = logging.getLogger(__name__)

# Request line and headers together: browsers and proxies send 1 to 8 kB, and no option of ours is long.
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
# Answers that callers have yet to take, of all connections: ten drawn pictures of the largest kind.
MAX_UNSENT_BYTES = 256 * 2**20
# Open files that are no connections of callers: libraries, models, Triton, pipes, and some.
_OTHER_FILES = 512


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with bounds; :func:`connection_options` fills in the service's own.

    Attributes:
        most: connections at a time; for one more an idle one is closed, or it is told so and closed.
        idle_seconds: without a request, before a connection may be closed for a new one: what its caller has just sent
            may lie unread.
        head_seconds: for a request's head, from its first byte or the connection's start.
        rest_seconds: for what still comes of a body when the answer is out already.
        write_seconds: for a caller to take an answer, and as many more as it takes at ``write_rate``.
        write_rate: bytes a second; 2 Mbit/s are a poor mobile connection.
        most_unsent: bytes of answers that callers have yet to take; beyond, the slowest of them is let go.
        rejected: is told the reason of each refusal, which no request's record has.
    """

    most = 1000
    idle_seconds = 1.0
    head_seconds = 15.0
    rest_seconds = 30.0
    write_seconds = 60.0
    write_rate = 256e3
    most_unsent = MAX_UNSENT_BYTES
    rejected: Callable[[str], None] = staticmethod(lambda reason: None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and give its first request time to arrive."""
        super().connection_made(transport)
        self.transport: Any = JoinedWrites(transport, self.loop)
        self._in_head, self._begun = True, False
        self._head_bytes = self._header_count = 0
        self._patience: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._quiet_since = self._writing_since = self.loop.time()
        if len(self.connections) > self.most and not self._make_room():
            self._refuse(self._too_many())
            return
        self._patience = self.loop.call_later(self.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        super().connection_lost(exc)
        self._stop_waiting()
        if self._writing is not None:
            self._writing.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head, or what nobody reads any more of a body, must come to an end."""
        if self._patience is None and not self.transport.is_closing():
            if self._in_head:
                self._patience = self.loop.call_later(self.head_seconds, self._head_is_late)
            elif self.cycle is not None and self.cycle.response_complete:
                self._patience = self.loop.call_later(self.rest_seconds, self.transport.abort)
        if self._in_head:
            self._begun = True
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to what no route of ours speaks; the request is answered as it stands
        except httptools.HttpParserError as error:
            self._unreadable(error)
        # The parser calls back once a line is whole: a line without end shows here alone.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"more than {MAX_HEAD_BYTES} bytes of request line and headers"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count headers."""
        self._header_count += 1
        if self._header_count <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there: begin the request, unless it is too large."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        count, self._header_count, self._head_bytes = self._header_count, 0, 0
        self._in_head = False
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if count > MAX_HEADERS:
            self._refuse(HeadTooLarge(f"{count} headers; at most {MAX_HEADERS} are read"))
        elif size > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"{size} bytes of request line and headers; at most {MAX_HEAD_BYTES} are read"))
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand on what was not refused."""
        if self.cycle is not None and not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The next bytes begin another head."""
        self._in_head, self._begun = True, False
        self._stop_waiting()
        if self.cycle is not None and not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is out; from now on the connection is idle."""
        self._quiet_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The caller reads more slowly than we write: it has its time, or less where too much waits to be read."""
        super().pause_writing()
        self._writing_since = self.loop.time()
        seconds = self.write_seconds + self.transport.get_write_buffer_size() / self.write_rate
        self._writing = self.loop.call_later(seconds, self.transport.abort)
        waiting = [one for one in self._others() if one._writing is not None]
        unsent = sum(one.transport.get_write_buffer_size() for one in (self, *waiting))
        if waiting and unsent > self.most_unsent:
            self.rejected("connections")
            slowest = min(waiting, key=lambda one: one._writing_since)
            self.loop.call_soon(slowest.transport.abort)

    def resume_writing(self) -> None:
        """The caller has taken nearly all of it."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _make_room(self) -> bool:
        """Close a connection on which no request is, of the address that has most of those: the longest so.

        An answer that still leaves is flushed first. False when there is none.
        """
        quiet, now = [], self.loop.time()
        for one in self._others():
            if one.transport.is_closing():
                if now - one._quiet_since > self.write_seconds:  # its caller never takes what would be flushed
                    one.transport.abort()
                    return True
            elif now - one._quiet_since < self.idle_seconds or one._writing is not None:
                continue
            elif one.cycle is None or one.cycle.response_complete:
                quiet.append(one)
        if not quiet:
            return False
        held = Counter(one._address for one in quiet)
        gone = min(quiet, key=lambda one: (-held[one._address], one._quiet_since))
        if gone._in_head and gone._begun:
            gone._refuse(self._too_many())
        else:
            gone._stop_waiting()
            gone.transport.close()
        return True

    def _others(self) -> list[BoundedProtocol]:
        return [one for one in self.connections if isinstance(one, BoundedProtocol) and one is not self]

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _too_many(self) -> RateLimited:
        return RateLimited(f"more than {self.most} connections are open", retry_after=1, reason="connections")

    def _unreadable(self, error: httptools.HttpParserError) -> None:
        """What came is no HTTP: uvicorn's own answer is no problem document, and a line of the log for each."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # in the middle of an answer nothing else can be told
        else:
            logger.debug("a request that is not HTTP", exc_info=error)
            self._refuse(InvalidRequest(f"the request is not HTTP/1.1 as it should be: {error}"[:300]))

    def _head_is_late(self) -> None:
        self._patience = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # The request before is being answered, and some stray bytes came after it.
            self._patience = self.loop.call_later(self.head_seconds, self._head_is_late)
        elif self._begun:
            self._refuse(RequestTimeout(f"the request's head did not arrive within {self.head_seconds:g} s"))
        else:  # a connection opened in advance and not used
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse(self, error: ServiceError) -> None:
        """Answer without a request, and close."""
        self._stop_waiting()
        self.rejected(error.reason)
        body = problem_document(error)
        head = [STATUS_LINE[error.status]]
        headers = {**DEFAULTS, "Content-Type": MEDIA_TYPE, "Content-Length": len(body), "Connection": "close"}
        if error.retry_after is not None:
            headers["Retry-After"] = math.ceil(error.retry_after)
        head += [f"{name.lower()}: {value}\r\n".encode() for name, value in headers.items()]
        self.transport.write(b"".join([*head, b"\r\n", body]))
        self.transport.close()


def allow_descriptors(number: int) -> None:
    """Raise this process's soft limit on open files as far as the hard one goes: 1024 is a common one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        with contextlib.suppress(ValueError, OSError):  # the kernel allows less than the hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def connection_options(settings: Settings, rejected: Callable[[str], None]) -> dict[str, Any]:
    """What uvicorn is to be told about connections: our protocol, no WebSockets, and whose word on callers counts."""
    allow_descriptors(settings.max_connections + _OTHER_FILES)
    bounds = {
        "most": settings.max_connections,
        "head_seconds": settings.head_seconds,
        "rejected": staticmethod(rejected),
    }
    return {
        "http": type("Protocol", (BoundedProtocol,), {**bounds, "rest_seconds": settings.body_seconds}),
        "ws": "none",
        # uvicorn would believe X-Forwarded-For of everybody on this machine.
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
    }
