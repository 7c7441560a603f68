"""Requests with known answers: pictures with mixes of options, each posted alone before the load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from loadtest.agreement import disagreement
from loadtest.pictures import LoadPicture
from loadtest.wire import request_bytes
from service.client import PoseClient, ProblemError

# What callers ask for, the usual thing more often. Options that a model does not have are left out.
MIXES: tuple[Mapping[str, str], ...] = (
    {},
    {},
    {},
    {"format": "results"},
    {"flip": "true"},
    {"flip": "false"},
    {"fusion": "1,0,0"},
    {"max_people": "2"},
    {"rescore": "false", "nms_oks": "0.9"},
)


@dataclass(frozen=True)
class Case:
    """One request and its right answer."""

    name: str
    path: str
    picture: LoadPicture
    expected: Any

    def request(self, headers: Mapping[str, str] | None = None) -> bytes:
        """The request on the wire."""
        return request_bytes(self.path, self.picture.data, self.picture.media_type, headers=headers)


def learn(
    client: PoseClient, pictures: Sequence[LoadPicture], mixes: Sequence[Mapping[str, str]] = MIXES
) -> list[Case]:
    """Post every picture with every mix, alone, and keep the answers. Raises ClientError.

    Mixes are interleaved, so that a short run has some of each.
    """
    return list(_learn(client, pictures, [mix for mix in mixes if is_served(client, pictures[0], mix)]))


def _learn(client: PoseClient, pictures: Sequence[LoadPicture], mixes: Sequence[Mapping[str, str]]) -> Iterator[Case]:
    learnt: dict[tuple[str, str], Any] = {}
    for index in range(len(pictures) * len(mixes)):
        lap, place = divmod(index, len(pictures))
        picture, mix = pictures[place], mixes[(lap + place) % len(mixes)]
        options: dict[str, Any] = {"format": "coco", **mix}
        path = "/v1/pose?" + urlencode(options)
        if (picture.name, path) not in learnt:
            learnt[picture.name, path] = client.pose(picture.data, **options)
        name = " ".join(f"{key}={value}" for key, value in mix.items()) or "coco"
        yield Case(name, path, picture, learnt[picture.name, path])


def is_served(client: PoseClient, picture: LoadPicture, mix: Mapping[str, str]) -> bool:
    """Whether the model has these options. Raises ClientError for anything but a 422."""
    try:
        options: dict[str, Any] = dict(mix)
        client.pose(picture.data, **options)
    except ProblemError as problem:
        if problem.status != 422:
            raise
        return False
    return True


class Checked:
    """Says what is wrong with answers; one that came before, byte for byte, is not parsed again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], str | None] = {}

    def wrong(self, case: Case, body: bytes) -> str | None:
        """None when the answer is the case's; else what differs."""
        key = (id(case.expected), hashlib.blake2b(body, digest_size=16).digest())
        if key not in self._known:
            try:
                self._known[key] = disagreement(case.expected, json.loads(body))
            except (ValueError, KeyError, TypeError) as error:
                self._known[key] = f"unreadable answer: {error!r}"
        return self._known[key]
