"""Stages: a request that was given up must still be told of, while its threads go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.stages import Stages


class Adding(float):
    """Seconds during whose reading another stage ends, as one in a thread can at any moment."""

    stages: Stages

    def __mul__(self, other: float) -> float:
        self.stages.add(f"stage {len(self.stages.seconds)}", 1.0)
        return float(self) * other


@pytest.mark.parametrize("tell", [Stages.server_timing, Stages.milliseconds])
def test_a_stage_that_ends_meanwhile_does_no_harm(tell: Callable[[Stages], object]) -> None:
    stages = Stages()
    for name in ("read", "decode"):
        seconds = Adding(0.5)
        seconds.stages = stages
        stages.seconds[name] = seconds
    told = tell(stages)
    assert "read" in str(told)
    assert "decode" in str(told)
    assert len(stages.seconds) == 4


def test_times_are_milliseconds_in_the_order_of_the_stages() -> None:
    stages = Stages()
    stages.add("read", 0.25)
    stages.add("decode", 0.001)
    stages.add("read", 0.25)
    assert stages.server_timing() == "read;dur=500.00, decode;dur=1.00"
    assert stages.milliseconds() == {"read": 500.0, "decode": 1.0}
    copied = stages.copy()
    copied["read"] = 0.0
    assert stages.seconds["read"] == 0.5
