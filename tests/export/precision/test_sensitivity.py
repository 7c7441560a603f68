"""If these fail, what stays in float is not what suffers most, or so much of it that nothing is won."""

import numpy as np

from export.precision.comparison import Question
from export.precision.regions import Block
from export.precision.sensitivity import Finding, keep_in_float, scan

SURE = np.ones((2, 3, 1))


def finding(name: str, share: float, harm: float) -> Finding:
    return Finding(Block(name, (f"{name}.conv",), share), harm)


def kept(findings: list[Finding], share: float) -> list[str]:
    return [block.name for block in keep_in_float(findings, share)]


def test_harm_is_weighed_against_cost() -> None:
    findings = [finding("dear", 0.10, 1.0), finding("cheap", 0.01, 0.5), finding("harmless", 0.001, 0.01)]
    assert kept(findings, 0.2) == ["cheap", "dear"]


def test_the_share_in_float_is_not_exceeded_and_what_still_fits_is_taken() -> None:
    findings = [finding("first", 0.06, 3.0), finding("second", 0.06, 2.0), finding("third", 0.03, 0.5)]
    assert kept(findings, 0.1) == ["first", "third"]
    assert kept(findings, 0.0) == []


async def test_a_block_is_as_harmful_as_it_moves_joints_and_no_more_than_eight_pixels() -> None:
    """Joints moved by 3 pixels, and by 300: the harms are 3 and 8."""
    crops = np.zeros((2, 4, 4, 3), np.uint8)
    wanted = [Question("pose", "pose", {"crops": crops}, 0.2)]
    expected = [{"keypoints": np.concatenate([np.zeros((2, 3, 2)), SURE], -1)}]
    moves = {"near": 3.0, "far": 300.0}

    class Moved:
        def __init__(self, by: float) -> None:
            self.by = by

        async def infer(self, model: str, inputs: object) -> dict[str, np.ndarray]:
            place = np.concatenate([np.full((2, 3, 1), self.by), np.zeros((2, 3, 1))], -1)
            return {"keypoints": np.concatenate([place, SURE], -1)}

    blocks = [Block(name, (), 0.1) for name in moves]
    seen: list[None] = []
    found = await scan(blocks, lambda block: moves[block.name], Moved, wanted, expected, lambda: seen.append(None))  # type: ignore[arg-type]
    assert [f.harm for f in found] == [3.0, 8.0]
    assert len(seen) == 2
