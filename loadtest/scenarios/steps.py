"""Steps to saturation: more and more users in a closed loop, each step as long as the last.

locust -f loadtest/scenarios/steps.py --host URL --headless --steps 1,2,4,8,16,32 --step-seconds 20
"""

from __future__ import annotations

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from loadtest.locustfile import PoseUser

__all__ = ["PoseUser", "Staircase"]


@events.init_command_line_parser.add_listener
def add_step_options(parser: LocustArgumentParser) -> None:
    """How many users, and for how long."""
    group = parser.add_argument_group("steps")
    group.add_argument("--steps", default="1,2,4,8,16,32", help="Users of each step, separated by commas.")
    group.add_argument("--step-seconds", type=float, default=20.0, help="Length of a step.")


class Staircase(LoadTestShape):
    """Users by the time that has passed; Locust ends after the last step."""

    def tick(self) -> tuple[int, float] | None:
        """Users and how many of them begin in a second; None at the end."""
        options = self.runner.environment.parsed_options if self.runner is not None else None
        assert options is not None, "Locust gives a shape its runner before it asks"
        steps = [int(users) for users in options.steps.split(",")]
        step = int(self.get_run_time() / options.step_seconds)
        return (steps[step], 1000.0) if step < len(steps) else None
