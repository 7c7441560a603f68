"""API keys: a caller sends one as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``; kept are SHA-256 hashes.

A plain hash and no slow one (bcrypt, Argon2): those make guessing passwords dear. A key of :func:`new_key` has 256
random bits, which nobody guesses, and a slow hash for each request would hand everybody a way to keep the cores busy.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from service.errors import Forbidden, Unauthorized

logger = logging.getLogger(__name__)

# So that scanners for leaked secrets, and people, recognise a key.
_PREFIX = "tpose_"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
# 128 bits where they are hexadecimal digits; what is shorter is a word, or somebody's test.
_MIN_CHARACTERS = 32
# How often a keys file is looked at, in seconds: one call of the system each.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """What one caller may do; None for what the settings say.

    Attributes:
        rate: requests a second in the long run; 0 for no limit.
        burst: requests at once before the rate counts.
        concurrency: requests in flight; 0 for no limit.
    """

    rate: float | None = None
    burst: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Key:
    """A key, known by its hash."""

    name: str
    digest: bytes = field(repr=False)
    limits: Limits = Limits()


def new_key() -> str:
    """A key of 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def check_key(key: str) -> None:
    """Raises ValueError, without the key, for one that is too short to be beyond guessing."""
    if len(key) < _MIN_CHARACTERS:
        raise ValueError(
            f"{len(key)} characters; at least {_MIN_CHARACTERS} random ones are expected (tritonpose keys create)"
        )


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def key_line(name: str, key: str, limits: Limits = Limits()) -> str:
    """The line of a keys file for a key. Raises ValueError for a name that does not fit into one."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name {name!r}: 1 to 64 letters, digits and any of . _ - are expected")
    given = [f"{limit}={value:g}" for limit, value in vars(limits).items() if value is not None]
    return " ".join([name, "sha256:" + digest_of(key).hex(), *given])


def read_keys(path: Path) -> list[Key]:
    """The keys of a file: a line each, ``NAME sha256:HASH [rate=N] [burst=N] [concurrency=N]``; # begins a comment.

    Raises:
        ValueError: naming file and line (never what stands there: it might be a key pasted by mistake).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the keys file {path} cannot be read: {error}") from None
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            key = _parse(words, f"{path}, line {number}")
            if any(key.name == other.name or key.digest == other.digest for other in keys):
                raise ValueError(f"{path}, line {number}: this name or hash was there before")
            keys.append(key)
    return keys


class KeyRing:
    """All keys that let a caller in: those of the settings, and those of a file, which is read again when it changes.

    A file that became unreadable or wrong is told in the log, and the keys before stay in force.
    """

    def __init__(
        self, keys: Sequence[SecretStr] = (), file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._own = [Key(f"key-{n}", digest_of(key.get_secret_value())) for n, key in enumerate(keys, 1)]
        self._file = file
        self._clock = clock
        self._look_at = clock() + _LOOK_SECONDS
        self._state = self._stat()
        self._keys = {key.digest: key for key in [*self._own, *(read_keys(file) if file else ())]}
        # A file without keys lets nobody in: only a service that was given neither is open.
        self.required = bool(self._own) or file is not None

    def authenticate(self, headers: Mapping[str, str]) -> Key | None:
        """The caller's key; None where no key is needed.

        Raises:
            Unauthorized: no key was sent.
            Forbidden: the key is not one of ours.
        """
        if not self.required:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not sent:
            raise Unauthorized("send an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
        self._look()
        digest = digest_of(sent)
        key = self._keys.get(digest)
        # The table is asked for a hash, which nobody can steer towards one of ours, so its time tells nothing.
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise Forbidden("the API key is not known")
        return key

    def _look(self) -> None:
        if self._file is None or self._clock() < self._look_at:
            return
        self._look_at = self._clock() + _LOOK_SECONDS
        state = self._stat()
        if state == self._state:
            return
        self._state = state
        try:
            keys = read_keys(self._file)
        except ValueError as error:
            logger.error("the API keys stay as they were: %s", error)
            return
        self._keys = {key.digest: key for key in [*self._own, *keys]}
        logger.info("%d API keys read from %s", len(keys), self._file)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat() if self._file else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None


def _parse(words: list[str], where: str) -> Key:
    name, rest = words[0], words[1:]
    found = _HASH.fullmatch(rest[0]) if rest else None
    if not _NAME.fullmatch(name) or found is None:
        raise ValueError(f"{where}: NAME sha256:HASH is expected (64 hexadecimal digits), then limits")
    limits: dict[str, float | int] = {}
    for word in rest[1:]:
        limit, _, value = word.partition("=")
        number = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value)
        if limit in limits or limit not in ("rate", "burst", "concurrency") or number is None:
            raise ValueError(f"{where}: a limit is rate=N, burst=N or concurrency=N, each once")
        if limit != "rate" and number.group(1):
            raise ValueError(f"{where}: {limit} is a whole number")
        limits[limit] = float(value) if limit == "rate" else int(value)
    return Key(name, bytes.fromhex(found.group(1)), Limits(**limits))  # type: ignore[arg-type]
