"""Traces: whether there are any, which trace a caller is in, and what to tell the next service.

Off unless the standard variables of OpenTelemetry name a collector. Nothing of OpenTelemetry is imported here, so a
service without traces neither needs its packages (the extra ``tracing``) nor pays for them;
:mod:`service.open_telemetry` is the part that does.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from service.stages import StageTrace

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# W3C Trace Context: version, trace id, id of the caller's span, flags; later versions may append fields.
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
#: Headers that place a call made now into the stage that makes it; None where nothing is traced.
outgoing: ContextVar[dict[str, str] | None] = ContextVar("outgoing", default=None)


class RequestTrace(Protocol):
    """The trace of one request."""

    #: 32 hexadecimal digits.
    trace_id: str

    @property
    def stages(self) -> StageTrace | None:
        """Is told of every stage; None where the request is not sampled."""
        ...

    def end(self, name: str, fields: Mapping[str, Any]) -> None:
        """The request is over; ``fields`` are those of its log line."""
        ...


class Tracing(Protocol):
    """Makes traces."""

    def begin(self, method: str, headers: Mapping[str, str]) -> RequestTrace:
        """A request begins; its headers may place it into the caller's trace."""
        ...

    def close(self) -> None:
        """Send what has not been sent, within seconds."""
        ...


def trace_id_of(headers: Mapping[str, str]) -> str | None:
    """The trace that a caller is in, by ``traceparent``; None without one, or with one that is not sane."""
    found = _PARENT.fullmatch(headers.get("traceparent", ""))
    return found.group(1) if found else None


def open_tracing() -> Tracing | None:
    """Traces as the ``OTEL_*`` variables say, None where they ask for none.

    A mistake in them is told in the log and leaves the service without traces: they must not keep it from answering.
    """
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if endpoint is None or exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if exporter != "otlp" or protocol != "http/protobuf":
        logger.error(
            "no traces: exporter %r over %r is asked for; there is otlp over http/protobuf", exporter, protocol
        )
        return None
    try:
        from service.open_telemetry import OpenTelemetry

        return OpenTelemetry()
    except ImportError as error:
        logger.error("no traces to %s: %s (install the extra: tritonpose[tracing])", endpoint, error)
    except Exception:
        logger.exception("no traces to %s", endpoint)
    return None
