"""The repository reader: a repository that Triton would serve is read as Triton reads it, a broken one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.engines.base import TensorSpec
from service.engines.config import ENSEMBLE, ONNX, RepositoryError, read_model, read_repository
from tests.service.engines.repositories import Repository

TENSORS = (
    'input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]\noutput [{ name: "y" data_type: TYPE_FP32 dims: [3] }]\n'
)
GOOD = 'platform: "onnxruntime_onnx"\nmax_batch_size: 8\n' + TENSORS


def model(repository: Repository, text: str, versions: tuple[str, ...] = ("1",), file: str = "model.onnx") -> Path:
    """A model folder whose networks are empty files: reading does not open them."""
    path = repository.config("m", text)
    for version in versions:
        (path.parent / version).mkdir(parents=True)
        (path.parent / version / file).touch()
    return path.parent


def test_every_field_that_callers_rely_on_is_read(repository: Repository) -> None:
    folder = model(
        repository,
        """
        # a comment, as people write them
        backend: "onnxruntime"
        max_batch_size: 16
        input [
          { name: "crops" data_type: TYPE_UINT8 dims: [256, 192, 3] },
          { name: "weights" data_type: TYPE_FP32 dims: [-1] }
        ]
        output { name: "keypoints" data_type: TYPE_FP16 dims: [17, 3] }
        dynamic_batching {
          max_queue_delay_microseconds: 1500
          default_queue_policy { max_queue_size: 64 default_timeout_microseconds: 250000 }
        }
        instance_group [{ count: 2 kind: KIND_CPU }]
        optimization { graph { level: 1 } }
        parameters { key: "kind" value { string_value: "pose" } }
        parameters { key: "score_threshold" value { string_value: "0.2" } }
        """,
    )
    config = read_model(folder)
    assert config.metadata.name == "m"
    assert config.metadata.platform == ONNX
    assert config.metadata.max_batch_size == 16
    assert config.metadata.inputs == (
        TensorSpec("crops", "uint8", (256, 192, 3)),
        TensorSpec("weights", "float32", (-1,)),
    )
    assert config.metadata.outputs == (TensorSpec("keypoints", "float16", (17, 3)),)
    assert config.metadata.parameters == {"kind": "pose", "score_threshold": "0.2"}
    assert config.onnx == folder / "1" / "model.onnx"
    policy = config.batching
    assert (policy.max_rows, policy.joins, policy.max_queue, policy.instances) == (16, True, 64, 2)
    assert policy.delay == pytest.approx(0.0015)
    assert policy.queue_timeout == pytest.approx(0.25)
    assert config.cpu_only
    assert config.graph_level == 1


def test_without_a_dynamic_batching_block_nothing_is_joined(repository: Repository) -> None:
    policy = read_model(model(repository, GOOD)).batching
    assert not policy.joins
    assert (policy.delay, policy.max_queue, policy.queue_timeout, policy.instances) == (0, 0, 0, 0)


def test_a_queue_timeout_that_only_delays_refuses_nothing(repository: Repository) -> None:
    text = "dynamic_batching { default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 } }"
    assert read_model(model(repository, GOOD + text)).batching.queue_timeout == 0


@pytest.mark.parametrize(
    ("policy", "selected"),
    [
        ("", (10,)),
        ("version_policy { latest { num_versions: 2 } }", (9, 10)),
        ("version_policy { latest { num_versions: 9 } }", (1, 9, 10)),
        ("version_policy { all {} }", (1, 9, 10)),
        ("version_policy { specific { versions: [9, 1] } }", (1, 9)),
    ],
)
def test_version_policy(repository: Repository, policy: str, selected: tuple[int, ...]) -> None:
    """Versions are numbers (10 is later than 9), and folders that are none are left alone."""
    folder = model(repository, GOOD + policy, versions=("1", "9", "10", "0", "007", "draft"))
    config = read_model(folder)
    assert config.metadata.versions == selected
    assert config.version == selected[-1]
    assert config.onnx == folder / str(selected[-1]) / "model.onnx"


def test_other_file_name(repository: Repository) -> None:
    folder = model(repository, GOOD + 'default_model_filename: "pose.onnx"', file="pose.onnx")
    assert read_model(folder).onnx == folder / "1" / "pose.onnx"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('platform: "onnxruntime_onnx" max_batch: 3', "max_batch"),
        ("max_batch_size: many", "many"),
        ('name: "other"\n' + GOOD, "other"),
        (GOOD.replace("8", "-1"), "-1"),
        (GOOD.replace("onnxruntime_onnx", "tensorflow_savedmodel"), "tensorflow_savedmodel"),
        ('backend: "python"\n' + TENSORS, "python"),
        (TENSORS, "platform ''"),
        ('platform: "ensemble"\n' + TENSORS, "ensemble_scheduling"),
        (GOOD + "ensemble_scheduling { step { } }", "ensemble_scheduling"),
        ('platform: "onnxruntime_onnx"', "no input"),
        ('platform: "onnxruntime_onnx"\n' + TENSORS.split("\n")[0], "no output"),
        (GOOD.replace("TYPE_FP32", "TYPE_BF16", 1), "TYPE_BF16"),
        (GOOD.replace("data_type: TYPE_FP32 ", "", 1), "TYPE_INVALID"),
        (GOOD.replace("[3]", "[0]", 1), "[0]"),
        (GOOD.replace("[3]", "[-2]", 1), "[-2]"),
        (GOOD.replace('name: "x"', 'name: ""'), "''"),
        (GOOD + 'output { name: "y" data_type: TYPE_FP32 dims: [3] }', "'y'"),
        (GOOD.replace("dims: [3]", "dims: [3] reshape { shape: [1, 3] }", 1), "reshape of 'x'"),
        (GOOD.replace("dims: [3]", "dims: [3] optional: true", 1), "optional of 'x'"),
        (GOOD.replace("dims: [3]", "dims: [3] allow_ragged_batch: true", 1), "allow_ragged_batch of 'x'"),
        (GOOD + "sequence_batching { }", "sequence_batching"),
        (GOOD + "version_policy { specific { versions: [1, 7] } }", "7"),
        (GOOD + "version_policy { specific { } }", "[]"),
        (GOOD + 'default_model_filename: "gone.onnx"', "gone.onnx"),
    ],
)
def test_a_bad_config_is_refused_with_file_and_value(repository: Repository, text: str, named: str) -> None:
    folder = model(repository, "")
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    with pytest.raises(RepositoryError) as caught:
        read_model(folder)
    assert str(folder / "config.pbtxt") in str(caught.value)
    assert named in str(caught.value)


def test_a_model_without_version_folder_is_refused(repository: Repository) -> None:
    with pytest.raises(RepositoryError, match="version folder"):
        read_model(model(repository, GOOD, versions=()))


def test_bytes_that_are_no_text_are_refused(repository: Repository) -> None:
    folder = model(repository, "")
    (folder / "config.pbtxt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt"):
        read_model(folder)


def test_repository_takes_models_and_leaves_other_things(repository: Repository) -> None:
    model(repository, GOOD)
    repository.ensemble("both", [("m", {"x": "x"}, {"y": "y"})], {"x": (1, [3])}, {"y": (1, [3])})
    (repository.root / "README.md").touch()
    (repository.root / ".git" / "1").mkdir(parents=True)
    (repository.root / "cards").mkdir()
    models = read_repository(repository.root)
    assert sorted(models) == ["both", "m"]
    assert models["both"].metadata.platform == ENSEMBLE
    assert models["both"].onnx is None
    assert [(step.model, step.version, step.inputs, step.outputs) for step in models["both"].steps] == [
        ("m", -1, {"x": "x"}, {"y": "y"})
    ]


def test_repository_that_cannot_be_served(repository: Repository) -> None:
    with pytest.raises(RepositoryError, match="not a folder"):
        read_repository(repository.root)
    repository.root.mkdir()
    with pytest.raises(RepositoryError, match="holds no"):
        read_repository(repository.root)
    (repository.root / "forgotten" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match=r"forgotten has versions but no config\.pbtxt"):
        read_repository(repository.root)
