"""Locust posts pictures at ``/v1/pose`` with mixed options and checks every answer's people.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless --users 4 --run-time 60s

Before the load each picture is posted once with each mix of options; these answers are what all later ones have to
equal (to 0.5 px and 0.01 of score). Of drawn pictures it is also told how many of the people were found. The exit
code is 1 when an answer was wrong too often or too slow (``--max-fail-ratio``, ``--max-p95``), 2 when the load
could not begin.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner

from loadtest.agreement import Recall, disagreement, recall
from loadtest.pictures import LoadPicture, folder_pictures, rendered_pictures
from service.client import ClientError, PoseClient, ProblemError

logger = logging.getLogger("loadtest")
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request that is learnt says nothing

# What callers ask for, the usual thing more often. Options that a model does not have are left out at the start.
MIXES: tuple[Mapping[str, str], ...] = (
    {},
    {},
    {},
    {"format": "results"},
    {"flip": "true"},
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


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The load test's own options, also as environment variables."""
    group = parser.add_argument_group("pictures and limits")
    group.add_argument("--folder", env_var="LOADTEST_FOLDER", default="", help="Pictures to post; else drawn ones.")
    group.add_argument("--pictures", env_var="LOADTEST_PICTURES", type=int, default=12, help="How many pictures.")
    group.add_argument("--api-key", env_var="TRITONPOSE_API_KEY", default="", help="Key of the service.")
    group.add_argument(
        "--max-fail-ratio", env_var="LOADTEST_MAX_FAIL_RATIO", type=float, default=0.0, help="Share that may fail."
    )
    group.add_argument(
        "--max-p95", env_var="LOADTEST_MAX_P95", type=float, default=0.0, help="Milliseconds; 0 for no limit."
    )


@events.init.add_listener
def learn_before_a_headless_run(environment: Environment, **_: object) -> None:
    """Learn before the clock of ``--run-time`` starts; without a right answer there is nothing to run."""
    options = environment.parsed_options
    if options is not None and options.headless and not isinstance(environment.runner, MasterRunner):
        learn_answers(environment)
        if not PoseUser.cases:
            sys.exit(2)


@events.test_start.add_listener
def learn_before_a_test(environment: Environment, **_: object) -> None:
    """With Locust's web page the host is known only now. A master has workers that load, and learn for themselves."""
    if environment.host != PoseUser.learnt_from and not isinstance(environment.runner, MasterRunner):
        learn_answers(environment)


def learn_answers(environment: Environment) -> None:
    """Post every case once, alone, and keep the answers; none when that fails."""
    PoseUser.cases, PoseUser.learnt_from = [], environment.host
    options = environment.parsed_options
    try:
        if not environment.host or options is None:
            raise ValueError("no --host given")
        pictures = (
            folder_pictures(Path(options.folder), options.pictures)
            if options.folder
            else rendered_pictures(options.pictures, (1, 5))
        )
        with PoseClient(environment.host, options.api_key or None, retries=5) as client:
            PoseUser.cases = list(_cases(client, pictures))
    except (ClientError, ValueError, OSError) as error:
        logger.error("the load cannot begin: %s", error)
        environment.process_exit_code = 2
        return
    found = [recall(c.picture.scene, c.expected) for c in PoseUser.cases if c.name == "coco" and c.picture.scene]
    PoseUser.recall = sum(found, Recall())
    PoseUser.turns = itertools.count()
    logger.info("%d requests learnt from %d pictures", len(PoseUser.cases), len(pictures))


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Set the exit code from the limits."""
    if environment.process_exit_code is not None or environment.parsed_options is None:
        return
    options, total = environment.parsed_options, environment.stats.total
    p95 = total.get_response_time_percentile(0.95) if total.num_requests else 0
    logger.info(
        "%d answers, %d wrong or failed, p50 %s ms, p95 %s ms, %.2f/s",
        total.num_requests,
        total.num_failures,
        total.median_response_time,
        p95,
        total.total_rps,
    )
    if PoseUser.recall.known:
        logger.info("drawn people found: %s", PoseUser.recall)
    reasons = []
    if not total.num_requests:
        reasons.append("nothing was answered")
    if total.fail_ratio > options.max_fail_ratio:
        reasons.append(f"{total.fail_ratio:.2%} failed, allowed are {options.max_fail_ratio:.2%}")
    if options.max_p95 and p95 > options.max_p95:
        reasons.append(f"p95 is {p95:.0f} ms, allowed are {options.max_p95:.0f}")
    for reason in reasons:
        logger.error("%s", reason)
    environment.process_exit_code = 1 if reasons else 0


class PoseUser(FastHttpUser):
    """Keeps one connection, posts without a pause, and reads what comes back."""

    wait_time = constant(0)
    cases: Sequence[Case] = ()
    learnt_from: str | None = None
    recall = Recall()
    turns: Iterator[int] = itertools.count()

    @task
    def post_picture(self) -> None:
        """One picture with one mix of options."""
        if not self.cases:
            raise StopTest("no right answers are known")
        case = self.cases[next(PoseUser.turns) % len(self.cases)]
        options = self.environment.parsed_options
        headers = {"Content-Type": case.picture.media_type}
        if options is not None and options.api_key:
            headers["Authorization"] = f"Bearer {options.api_key}"
        body: Any = case.picture.data  # bytes are fine, the annotation says text
        with self.client.post(case.path, data=body, headers=headers, name=case.name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}: {(response.text or str(response.error))[:200]}")
                return
            try:
                reason = disagreement(case.expected, json.loads(response.content or b""))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"unreadable answer: {error!r}"
            if reason:
                response.failure(f"{case.picture.name}: {reason}")
            else:
                response.success()


def _cases(client: PoseClient, pictures: Sequence[LoadPicture]) -> Iterator[Case]:
    """Every picture with every mix; mixes are interleaved so that a short run has some of each."""
    mixes = [mix for mix in MIXES if _is_served(client, pictures[0], mix)]
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


def _is_served(client: PoseClient, picture: LoadPicture, mix: Mapping[str, str]) -> bool:
    try:
        options: dict[str, Any] = dict(mix)
        client.pose(picture.data, **options)
    except ProblemError as problem:
        if problem.status != 422:
            raise
        logger.info("left out %s: %s", dict(mix), problem.detail)
        return False
    return True
