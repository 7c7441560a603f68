"""If these fail, a plan refuses batches that the server sends, or is built for others."""

import pytest

from export.checkpoints import ExportError
from export.tensorrt_plans.profiles import BatchProfile, batch_profile, input_shapes
from service.engines.base import ModelMetadata, TensorSpec


def metadata(most: int, *shape: int) -> ModelMetadata:
    return ModelMetadata("net", (1,), "onnxruntime_onnx", most, (TensorSpec("crops", "uint8", shape),), ())


def test_every_batch_that_the_config_allows_is_in_the_profile() -> None:
    assert batch_profile(metadata(64, 4, 4, 3), None) == BatchProfile(1, 8, 64)
    assert batch_profile(metadata(4, 4, 4, 3), None) == BatchProfile(1, 4, 4)
    assert batch_profile(metadata(8, 4, 4, 3), (1, 2, 16)) == BatchProfile(1, 2, 16)


@pytest.mark.parametrize("given", [(1, 4, 32), (2, 8, 64)])
def test_a_profile_that_leaves_out_batches_is_refused(given: tuple[int, int, int]) -> None:
    with pytest.raises(ExportError, match="batches of 1 to 64"):
        batch_profile(metadata(64, 4, 4, 3), given)


@pytest.mark.parametrize("given", [(0, 1, 8), (4, 2, 8), (1, 9, 8)])
def test_sizes_in_no_order_are_refused(given: tuple[int, int, int]) -> None:
    with pytest.raises(ExportError, match="1 <= min <= opt <= max"):
        batch_profile(metadata(8, 4, 4, 3), given)


def test_a_model_without_a_batch_axis_is_refused() -> None:
    with pytest.raises(ExportError, match="net has max_batch_size 0"):
        batch_profile(metadata(0, 4, 4, 3), None)


def test_shapes_are_those_of_the_config_with_rows_in_front() -> None:
    found = input_shapes(metadata(64, 256, 192, 3), BatchProfile(1, 8, 64))
    assert found == {"crops": ((1, 256, 192, 3), (8, 256, 192, 3), (64, 256, 192, 3))}
    with pytest.raises(ExportError, match="free axes"):
        input_shapes(metadata(64, -1, 192, 3), BatchProfile(1, 8, 64))
