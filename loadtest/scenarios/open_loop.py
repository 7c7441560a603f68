"""An open loop: requests arrive by chance at a rate (a Poisson process), whether or not earlier ones were answered.

    locust -f loadtest/scenarios/open_loop.py --host URL --headless --users 1 --rate 15 --run-time 60s

Latency counts from the moment at which a request was due: a closed loop that waits for a slow answer before it asks
again leaves out the very requests that would have been slow.
"""

from __future__ import annotations

import random
import time

import gevent
from gevent.pool import Pool
from locust import events, task
from locust.argument_parser import LocustArgumentParser
from locust.runners import STATE_RUNNING, STATE_SPAWNING

from loadtest import locustfile

_IN_FLIGHT = 1000


@events.init_command_line_parser.add_listener
def add_rate_options(parser: LocustArgumentParser) -> None:
    """How many requests a second."""
    group = parser.add_argument_group("arrivals")
    group.add_argument("--rate", type=float, default=10.0, help="Requests a second in the mean, of all users together.")
    group.add_argument("--seed", type=int, default=0, help="The same one gives the same arrivals.")


class Arrivals(locustfile.PoseUser):
    """One user is the whole crowd (``--users 1``)."""

    concurrency = _IN_FLIGHT
    may_be_refused = True  # chance, or a machine that has become slower, brings more than can be done

    @task
    def post_picture(self) -> None:
        """Send requests when they are due, until Locust stops this user."""
        options = self.environment.parsed_options
        assert options is not None
        chance, pool = random.Random(options.seed), Pool(_IN_FLIGHT)
        due = time.perf_counter()
        try:
            while self._goes_on():
                due += chance.expovariate(options.rate)
                gevent.sleep(max(0.0, due - time.perf_counter()))
                pool.spawn(self.post_case, self.next_case(), due)
        finally:
            pool.join(timeout=30)

    def _goes_on(self) -> bool:
        """Until Locust's time is up: it lets tasks end, and this one has no end of its own."""
        runner = self.environment.runner
        return runner is not None and runner.state in (STATE_SPAWNING, STATE_RUNNING)
