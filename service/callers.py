"""Who asks: the owner of an API key, or else an address; each with limits of its own on rate and concurrency."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from service.errors import RateLimited
from service.keys import Key, Limits
from service.settings import Settings

# Callers kept in mind: as many addresses as can be told apart, at some 500 bytes each.
_REMEMBERED = 10_000


class Caller:
    """One caller: what he holds of the service now, and his bucket of tokens.

    Attributes:
        name: ``key NAME`` or ``address``, for messages.
        held: requests, bytes, pixels and people of his requests in flight (see :mod:`service.admission`).
    """

    __slots__ = ("_burst", "_concurrency", "_rate", "_refilled", "_tokens", "held", "name")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.held = [0.0, 0.0, 0.0, 0.0]
        self._rate, self._burst, self._concurrency = 0.0, 1, 0
        self._tokens, self._refilled = math.inf, now

    def limit(self, rate: float, burst: int, concurrency: int) -> None:
        """Put limits in force; 0 for none."""
        self._rate, self._burst, self._concurrency = rate, burst or max(1, math.ceil(rate)), concurrency

    def take_token(self, now: float) -> None:
        """Count a request against the rate (a token bucket). Raises RateLimited saying when the next one is free."""
        if not self._rate:
            return
        self._tokens = min(float(self._burst), self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        if self._tokens < 1:
            raise RateLimited(
                f"more than {self._rate:g} requests a second",
                retry_after=(1 - self._tokens) / self._rate,
                reason="rate",
            )
        self._tokens -= 1

    def check_concurrency(self, retry_after: Callable[[], float]) -> None:
        """Raises RateLimited, with what ``retry_after`` says, when one more request in flight would be too many."""
        if self._concurrency and self.held[0] >= self._concurrency:
            raise RateLimited(
                f"more than {self._concurrency} requests in flight", retry_after=retry_after(), reason="concurrency"
            )


class Callers:
    """Finds the caller of a request. Those longest away are forgotten."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._known: OrderedDict[str, Caller] = OrderedDict()

    def find(self, key: Key | None, address: str | None) -> Caller:
        """The caller with that key, or from that address, after counting a request of his.

        Args:
            key: from :meth:`service.keys.KeyRing.authenticate`.
            address: of the peer, or what a trusted proxy said; IPv6 callers are told apart by their /64, since
                each of them has all addresses of one.

        Raises:
            RateLimited: he asks faster than he may.
        """
        now = self._clock()
        name = f"key {key.name}" if key else f"address {_network(address)}"
        caller = self._known.get(name)
        if caller is None:
            caller = self._known[name] = Caller(name, now)
            self._forget()
        else:
            self._known.move_to_end(name)
        limits, settings = key.limits if key else Limits(), self._settings
        caller.limit(
            settings.caller_rate if limits.rate is None else limits.rate,
            settings.caller_burst if limits.burst is None else limits.burst,
            settings.caller_concurrency if limits.concurrency is None else limits.concurrency,
        )
        caller.take_token(now)
        return caller

    def _forget(self) -> None:
        # Those whose requests are in flight are kept; a few looks for each that comes are enough to catch up.
        for _ in range(4):
            if len(self._known) <= _REMEMBERED:
                return
            name, oldest = next(iter(self._known.items()))
            if oldest.held[0]:
                self._known.move_to_end(name)
            else:
                del self._known[name]


@lru_cache(4096)
def _network(address: str | None) -> str:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:  # a Unix socket, or a proxy that sends names
        return (address or "unknown")[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
