"""If these fail, the repository of plans is not one that Triton takes, or its card does not say what built it."""

from pathlib import Path

from export.configs import read_config
from export.precision.conversion import read_configs
from export.tensorrt_plans.conversion import PlanRequest, write_repository
from export.tensorrt_plans.profiles import BatchProfile
from export.tensorrt_plans.requirements import Gpu
from tests.export.precision.published import tiny_repository


def test_plans_stand_where_the_networks_stood(tmp_path: Path) -> None:
    repository, into = tiny_repository(tmp_path / "models"), tmp_path / "plans"
    request = PlanRequest(repository, into)
    gpu = Gpu("NVIDIA H100", (9, 0), (13, 1))
    write_repository(
        request, read_configs(repository), {"heads": b"plan"}, {"heads": BatchProfile(1, 4, 8)}, "10.14.1.48", gpu
    )
    assert sorted(path.name for path in into.iterdir()) == ["fusion", "heads", "pose"]
    assert (into / "heads/1/model.plan").read_bytes() == b"plan"
    assert (into / "fusion/1/model.onnx").read_bytes() == (repository / "fusion/1/model.onnx").read_bytes()
    config = read_config(into / "heads/config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "kind": "part", "precision": "fp16", "tensorrt_version": "10.14.1.48", "gpu": "NVIDIA H100",
    }  # fmt: skip
    before = read_config(repository / "heads/config.pbtxt")
    for field in ("input", "output", "max_batch_size", "dynamic_batching", "model_warmup", "instance_group"):
        assert getattr(config, field) == getattr(before, field), field
    card = (into / "heads/MODEL_CARD.md").read_text()
    assert "TensorRT 10.14.1.48 on NVIDIA H100 (compute capability 9.0, driver for CUDA 13.1)" in card
    assert "Batches of 1 to 8, fastest at 4" in card
    assert (into.stat().st_mode & 0o777) == 0o755
