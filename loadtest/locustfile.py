"""Locust posts pictures at ``/v1/pose`` with mixed options and checks every answer's people.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless --users 4 --run-time 60s

Before the load each picture is posted once with each mix of options; these answers are what all later ones have to
equal (to 0.5 px and 0.01 of score). Of drawn pictures it is also told how many of the people were found. The exit
code is 1 when an answer was wrong too often or too slow (``--max-fail-ratio``, ``--max-p95``), 2 when the load
could not begin.

This file is the closed loop: each user keeps one request in flight. ``loadtest/scenarios/`` has steps to saturation,
arrivals at a rate, and callers who misbehave; ``python -m loadtest.campaign`` runs them all.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner

from loadtest.agreement import Recall, recall
from loadtest.cases import Case, Checked, learn
from loadtest.curve import Fate, Row
from loadtest.pictures import folder_pictures, mixed_pictures, rendered_pictures
from service.client import ClientError, PoseClient

logger = logging.getLogger("loadtest")
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request that is learnt says nothing


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The load test's own options, also as environment variables."""
    group = parser.add_argument_group("pictures and limits")
    group.add_argument("--folder", env_var="LOADTEST_FOLDER", default="", help="Pictures to post; else drawn ones.")
    group.add_argument("--pictures", env_var="LOADTEST_PICTURES", type=int, default=12, help="How many pictures.")
    group.add_argument("--mixed", action="store_true", help="Draw several sizes, counts of people and formats.")
    group.add_argument("--record", default="", help="File for the time and fate of every request (JSON).")
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
        if options.folder:
            pictures = folder_pictures(Path(options.folder), options.pictures)
        else:
            count = options.pictures
            pictures = mixed_pictures(count) if options.mixed else rendered_pictures(count, (1, 5))
        with PoseClient(environment.host, options.api_key or None, retries=5) as client:
            PoseUser.cases = learn(client, pictures)
    except (ClientError, ValueError, OSError) as error:
        logger.error("the load cannot begin: %s", error)
        environment.process_exit_code = 2
        return
    found = [recall(c.picture.scene, c.expected) for c in PoseUser.cases if c.name == "coco" and c.picture.scene]
    PoseUser.recall = sum(found, Recall())
    PoseUser.turns = itertools.count()
    logger.info("%d requests learnt from %d pictures", len(PoseUser.cases), len(pictures))


@events.test_start.add_listener
def start_recording(environment: Environment, **_: object) -> None:
    """Note when the load began."""
    Record.began, Record.rows = time.perf_counter(), []


@events.request.add_listener
def record(response_time: float, exception: BaseException | None, context: dict[str, Any], **_: object) -> None:
    """Note one request: when it was begun or was due, how long it took, and what became of it."""
    begun = context.get("begun", time.perf_counter() - response_time / 1000)
    fate: Fate = "wrong" if exception is not None else "refused" if context.get("refused") else "right"
    Record.rows.append((round(begun - Record.began, 4), round(response_time, 2), fate))


@events.quitting.add_listener
def write_record(environment: Environment, **_: object) -> None:
    """Write what was noted, for :mod:`loadtest.campaign`."""
    if environment.parsed_options is not None and environment.parsed_options.record:
        Path(environment.parsed_options.record).write_text(json.dumps(Record.rows))


class Record:
    """What was noted of the requests of this process."""

    began = 0.0
    rows: list[Row] = []  # noqa: RUF012  filled by listeners, which Locust calls bare


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
    """Keeps one connection, posts without a pause, and reads what comes back.

    Attributes:
        may_be_refused: 429 with an honest ``Retry-After`` is no failure. Who waits for his answer before he asks again
            offers no more than the service can do, and must get it.
    """

    wait_time = constant(0)
    may_be_refused = False
    cases: Sequence[Case] = ()
    learnt_from: str | None = None
    recall = Recall()
    turns: Iterator[int] = itertools.count()
    checked = Checked()

    @task
    def post_picture(self) -> None:
        """One picture with one mix of options."""
        self.post_case(self.next_case())

    def next_case(self) -> Case:
        """All cases in turn, whoever of the users asks. Raises StopTest where none was learnt."""
        if not self.cases:
            raise StopTest("no right answers are known")
        return self.cases[next(PoseUser.turns) % len(self.cases)]

    def key(self) -> dict[str, str]:
        """The header with the API key, if one is given."""
        options = self.environment.parsed_options
        return {"Authorization": f"Bearer {options.api_key}"} if options is not None and options.api_key else {}

    def post_case(self, case: Case, due: float | None = None) -> None:
        """Post and check. ``due``: moment of ``time.perf_counter`` from which the answer is waited for; now if None."""
        begun = time.perf_counter() if due is None else due
        headers = {"Content-Type": case.picture.media_type, **self.key()}
        body: Any = case.picture.data  # bytes are fine, the annotation says text
        with self.client.post(
            case.path, data=body, headers=headers, name=case.name, catch_response=True, context={"begun": begun}
        ) as response:
            response.request_meta["response_time"] = (time.perf_counter() - begun) * 1000
            if self.may_be_refused and response.status_code == 429 and _says_when(response.headers):
                response.request_meta["context"]["refused"] = True  # Locust has made a copy
                response.request_meta["name"] = "refused"
                response.success()
            elif response.status_code != 200:
                response.failure(f"HTTP {response.status_code}: {(response.text or str(response.error))[:200]}")
            elif reason := self.checked.wrong(case, response.content or b""):
                response.failure(f"{case.picture.name}: {reason}")
            else:
                response.success()


def _says_when(headers: Mapping[str, str]) -> bool:
    """Whether a refusal tells in whole seconds when to come back."""
    told = headers.get("Retry-After", "")
    return told.isdecimal() and int(told) > 0
