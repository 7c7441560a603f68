"""The real service over the stand-in models, as the load tests have it."""

from __future__ import annotations

from tests.loadtest.conftest import repository, service

__all__ = ["repository", "service"]
