"""If these fail, a plan is built for other batches, in other types, or a failed build does not tell why.

What TensorRT does with the calls is tried where it is installed and a GPU is there, at the end.
"""

from pathlib import Path
from typing import Any

import pytest

from export.checkpoints import ExportError
from export.tensorrt_plans.builder import BuildOptions, build_plan
from export.tensorrt_plans.graphs import typed_graph
from export.tensorrt_plans.requirements import find_gpu
from tests.export.precision.graphs import SIDE, small_graph
from tests.export.tensorrt_plans.recording import recording

SHAPES = {"images": tuple((rows, SIDE, SIDE, 3) for rows in (1, 4, 8))}


def test_types_are_those_of_the_graph_and_batches_those_of_the_profile() -> None:
    asked: dict[str, Any] = {}
    assert build_plan(recording(asked), b"graph", SHAPES, BuildOptions(workspace=123, level=5)) == b"plan"
    assert asked["flags"] == 1 << 1, "strongly typed"
    assert asked["profile"] == SHAPES
    assert asked["graph"] == b"graph"
    assert asked["pool"][1] == 123 and asked["level"] == 5
    assert asked["plugins"], "RoIAlign is a plugin"


def test_a_graph_that_is_not_understood_is_told_in_tensorrts_words() -> None:
    with pytest.raises(ExportError, match="cannot read the graph: node 0: unsupported"):
        build_plan(recording({}, "parse"), b"graph", SHAPES, BuildOptions())


def test_a_build_that_fails_tells_errors_and_no_warnings() -> None:
    with pytest.raises(ExportError, match=r"cannot build a plan: no kernel for node 7$"):
        build_plan(recording({}, "build"), b"graph", SHAPES, BuildOptions())


def test_a_profile_that_is_refused_is_told() -> None:
    with pytest.raises(ExportError, match="refuses the profile"):
        build_plan(recording({"profile_index": -1}), b"graph", SHAPES, BuildOptions())


def test_timings_are_kept_for_the_next_build(tmp_path: Path) -> None:
    path = tmp_path / "caches" / "timings"
    for expected in (b"+timings", b"+timings+timings"):
        build_plan(recording({}), b"graph", SHAPES, BuildOptions(timing_cache=path))
        assert path.read_bytes() == expected


def test_timings_of_another_gpu_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    path.write_bytes(b"other gpu")
    build_plan(recording({}), b"graph", SHAPES, BuildOptions(timing_cache=path))
    assert path.read_bytes() == b"+timings"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_itself_builds_and_answers_alike(precision: Any) -> None:
    trt = pytest.importorskip("tensorrt", reason="needs TensorRT", exc_type=ImportError)
    try:
        find_gpu()
    except ExportError as error:
        pytest.skip(str(error))
    import numpy as np

    from export.precision.regions import session
    from export.tensorrt_plans.runtime import PlanRun
    from service.engines.base import ModelMetadata
    from tests.export.precision.graphs import pictures
    from tests.export.precision.published import CROPS, MAPS

    graph = typed_graph(small_graph(), precision)
    plan = build_plan(trt, graph.SerializeToString(), SHAPES, BuildOptions(workspace=1 << 28))
    run = PlanRun(trt, plan, ModelMetadata("heads", (1,), "tensorrt_plan", 8, (CROPS,), (MAPS,)))
    for rows in (1, 3, 8):
        (expected,) = session(small_graph(), 1).run(None, {"images": pictures(rows)})
        np.testing.assert_allclose(run({"images": pictures(rows)})["maps"], expected, atol=0.01)
