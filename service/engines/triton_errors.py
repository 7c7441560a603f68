"""What the gRPC errors of a Triton server mean to a caller, and which of them are worth another try.

The codes alone do not tell: UNAVAILABLE is a full queue, a server that is gone and a model that is being unloaded.
The words were taken down from Triton 2.51 and gRPC 1.85; those that are not known fall through to the plain meaning
of their code, and are never tried again.
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException

from service.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InferenceFailed,
    ModelNotFound,
    Overloaded,
    ServiceError,
)

# No connection: nothing of the request has left this machine.
_NO_CONNECTION = ("failed to connect to all addresses", "connections to all backends failing", "errors resolving")
# A connection that ended under a request, also as codes other than UNAVAILABLE.
_BROKEN = ("Stream removed", "RST_STREAM", "Socket closed", "Connection reset")
# A Python-based back end whose process died; Triton starts it again.
_STUB = "Stub process"


def code_of(error: InferenceServerException) -> str:
    """The gRPC code's name, such as ``UNAVAILABLE``; "" for an error of the client library's own."""
    return (error.status() or "").rpartition(".")[2]


def never_sent(error: InferenceServerException) -> bool:
    """Whether nothing can have been computed because there was no connection to send the request over."""
    return code_of(error) == "UNAVAILABLE" and any(words in error.message() for words in _NO_CONNECTION)


def region_unknown(error: InferenceServerException) -> bool:
    """Whether the server does not know a region of shared memory (it was started anew); nothing was computed."""
    return "Unable to find shared memory region" in error.message()


def translate(error: InferenceServerException, model: str, server: str) -> ServiceError:
    """The service's error for a failed inference.

    Args:
        error: what the client library raised.
        model: what was asked.
        server: how messages call the server, with its address.
    """
    code, text = code_of(error), error.message() or ""
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"model {model!r} did not answer in time")
    if "Exceeds maximum queue size" in text:
        return Overloaded(f"model {model!r}: the queue of {server} is full")
    if "Request timeout expired" in text:
        return DeadlineExceeded(f"model {model!r}: waited too long in the queue of {server}")
    if "unknown model" in text:
        return ModelNotFound(f"model {model!r} is not loaded by {server}: {text}")
    if (
        code in ("UNAVAILABLE", "CANCELLED", "UNIMPLEMENTED")
        or _STUB in text
        or any(words in text for words in _BROKEN)
    ):
        return EngineUnavailable(unreachable(error, server))
    return InferenceFailed(f"model {model!r}: {text}")


def unreachable(error: InferenceServerException, server: str) -> str:
    """Why a server cannot be asked, with its address and what is likely to be wrong."""
    code, text = code_of(error), error.message() or ""
    if code == "DEADLINE_EXCEEDED":
        return f"{server} does not answer"
    if text == "Server not ready":
        return f"{server} is starting or stopping"
    if code == "UNIMPLEMENTED":
        return f"{server}: what listens there is no Triton server's gRPC port ({text})"
    if never_sent(error) and any(words in text for words in (*_BROKEN, "http1")):
        return f"{server}: what listens there does not speak gRPC; is it the HTTP port? ({text})"
    return f"{server} cannot be reached: {text}"
