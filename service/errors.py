"""Errors that a caller can be told about, each with its HTTP status and a stable problem type (RFC 9457).

    ServiceError
    ├── InvalidImage          400  not an image, truncated, empty
    ├── InvalidRequest        400  a body that is not what its content type says
    ├── Unauthorized          401  no API key
    ├── Forbidden             403  wrong API key
    ├── NotFound              404  no such path or model
    ├── MethodNotAllowed      405  not with this HTTP method
    ├── RequestTimeout        408  the body did not arrive in time
    ├── TooLarge              413  too many bytes, pixels or images
    ├── UnsupportedMedia      415  content type or image format
    ├── InvalidOption         422  option out of range, unknown model
    ├── Overloaded            429  the bounded queue is full, or too long for the deadline (Retry-After)
    ├── RateLimited           429  this caller asks too fast, or too much at a time (Retry-After)
    ├── HeadTooLarge          431  the request line and headers are too long
    ├── ClientGone            499  the caller hung up
    ├── EngineUnavailable     503  engine gone, starting or draining (Retry-After)
    │   └── ModelNotFound     503  a model the pipeline needs is not loaded
    ├── OutOfMemory           503  the process may have no more memory now (Retry-After)
    └── DeadlineExceeded      504  the request's time is up

``InferenceFailed`` (500) is the one that is never the caller's fault and not transient either.
"""

from __future__ import annotations


class ServiceError(Exception):
    """Base: ``status`` is the HTTP status, ``type`` the stable last part of the problem's type URI."""

    status = 500
    type = "internal"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        image_index: int | None = None,
        retry_after: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Say what was wrong.

        Args:
            detail: names the offending value.
            image_index: the picture of a batch.
            retry_after: seconds.
            reason: under which the metrics count it (:data:`service.metrics.REASONS`); the type when None.
        """
        super().__init__(detail)
        self.detail = detail
        self.image_index = image_index
        self.retry_after = retry_after
        self.reason = reason or self.type


class InvalidImage(ServiceError):
    """The bytes are not a whole picture."""

    status, type, title = 400, "invalid-image", "Not a readable image"


class InvalidRequest(ServiceError):
    """The body's envelope (JSON, multipart) cannot be read."""

    status, type, title = 400, "invalid-request", "Unreadable request"


class Unauthorized(ServiceError):
    """No API key was given."""

    status, type, title = 401, "unauthorized", "API key needed"


class Forbidden(ServiceError):
    """The API key is not known."""

    status, type, title = 403, "forbidden", "API key refused"


class NotFound(ServiceError):
    """A path names a thing that does not exist (``GET /v1/models/{name}``)."""

    status, type, title = 404, "not-found", "Not found"


class MethodNotAllowed(ServiceError):
    """The path exists, but not for this HTTP method; the header ``Allow`` names those it has."""

    status, type, title = 405, "method-not-allowed", "Method not allowed"


class RequestTimeout(ServiceError):
    """The request's body did not arrive in time."""

    status, type, title = 408, "request-timeout", "Request body too slow"


class TooLarge(ServiceError):
    """Too many bytes, pixels or images."""

    status, type, title = 413, "too-large", "Too large"


class UnsupportedMedia(ServiceError):
    """Content type or image format that is not served."""

    status, type, title = 415, "unsupported-media", "Unsupported media type"


class InvalidOption(ServiceError):
    """An option's value is out of range or names an unknown model."""

    status, type, title = 422, "invalid-option", "Invalid option"


class Overloaded(ServiceError):
    """The bounded queue is full."""

    status, type, title = 429, "overloaded", "Too many requests in flight"


class RateLimited(ServiceError):
    """This caller asks faster, or for more at a time, than he may; others are served."""

    status, type, title = 429, "rate-limited", "Too many requests of this caller"


class HeadTooLarge(ServiceError):
    """The request's line and headers are too long, or too many."""

    status, type, title = 431, "head-too-large", "Request head too large"


class InferenceFailed(ServiceError):
    """The engine answered with an error of its own."""

    status, type, title = 500, "inference-failed", "Inference failed"


class ClientGone(ServiceError):
    """The caller hung up: nobody reads this answer, but logs and metrics show it (nginx's status)."""

    status, type, title = 499, "client-gone", "Caller hung up"


class EngineUnavailable(ServiceError):
    """The engine cannot answer now."""

    status, type, title = 503, "engine-unavailable", "Engine not available"


class ModelNotFound(EngineUnavailable):
    """The engine has no such model loaded."""

    type, title = "model-not-found", "Model not loaded"


class OutOfMemory(ServiceError):
    """The process gets no more memory now."""

    status, type, title = 503, "out-of-memory", "Out of memory"


class DeadlineExceeded(ServiceError):
    """The request's time is up."""

    status, type, title = 504, "deadline-exceeded", "Deadline exceeded"
