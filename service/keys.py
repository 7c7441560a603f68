"""API keys: a caller sends one as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from service.errors import Forbidden, Unauthorized


def check_key(headers: Mapping[str, str], keys: Sequence[SecretStr]) -> None:
    """Let a caller in or not; without keys in the settings everyone is.

    Raises:
        Unauthorized: no key was sent.
        Forbidden: the key is not one of ours.
    """
    if not keys:
        return
    scheme, _, token = headers.get("authorization", "").partition(" ")
    sent = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not sent:
        raise Unauthorized("send an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
    # Every key is compared in full, so the time taken tells nothing about any of them.
    matches = [hmac.compare_digest(sent.encode(), key.get_secret_value().encode()) for key in keys]
    if not any(matches):
        raise Forbidden("the API key is not known")
