"""A repository with some networks in another precision: a new version of them, or a whole sibling repository."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as schema

from export.configs import as_text, pin, read_config
from export.repository import CARD, CONFIG, next_version
from service.engines.config import ModelConfig

# What Triton's ONNX Runtime back end reads from a config's parameters, beside everything with this beginning.
_SESSION = "session."
_OF_ONNX_RUNTIME = frozenset(
    (
        "intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern",
        "cudnn_conv_algo_search", "arena_extend_strategy", "gpu_mem_limit",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """One network in its new form.

    Attributes:
        model: the bytes of its file, ``model.onnx`` or ``model.plan``.
        card: Markdown about the conversion, put below what the card of the float network says.
        parameters: added to its config.
        platform: Triton's; None leaves it.
    """

    model: bytes
    card: str
    parameters: Mapping[str, str]
    platform: str | None = None


def stage_variant(
    configs: Mapping[str, ModelConfig], converted: Mapping[str, Converted], staged: Path, target: Path, whole: bool
) -> int:
    """Write the models to publish into an empty folder.

    Args:
        configs: the float repository.
        converted: by network name.
        staged: the empty folder.
        target: where they will be published; decides the version.
        whole: every model of the repository (for a sibling), not just the converted ones.

    Returns:
        the version.
    """
    names = sorted(configs if whole else converted)
    version = next_version(target, names)
    for name in names:
        config, change = configs[name], converted.get(name)
        place = staged / name / str(version)
        source = config.source.parent / str(config.version)
        if change is None:
            shutil.copytree(source, place)
        else:
            place.mkdir(parents=True)
            suffix = "plan" if change.platform else "onnx"
            (place / f"model.{suffix}").write_bytes(change.model)
        message = read_config(config.source)
        if change:
            adapt(message, change)
        elif config.steps:
            # All parts are in the new repository, with the one number that everything there has.
            pin(message, version, {step.model: version for step in config.steps})
        (staged / name / CONFIG).write_text(as_text(message), encoding="utf-8")
        card = config.source.parent / CARD
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {name}\n"
        if change:
            (staged / name / CARD).write_text(f"{before.rstrip()}\n\n{change.card}", encoding="utf-8")
        elif card.is_file():
            shutil.copyfile(card, staged / name / CARD)
    return version


def adapt(config: Any, change: Converted) -> None:
    """Write the conversion's parameters into a ``ModelConfig`` message, and its platform where that is another one."""
    for key, value in change.parameters.items():
        config.parameters[key].string_value = value
    config.ClearField("default_model_filename")
    if not change.platform:
        return
    config.platform = change.platform
    # Accelerators, graph levels and sessions speak to ONNX Runtime's back end.
    config.ClearField("backend")
    config.ClearField("optimization")
    for key in [key for key in config.parameters if key.startswith(_SESSION) or key in _OF_ONNX_RUNTIME]:
        del config.parameters[key]
    for group in config.instance_group:
        if group.kind == schema.ModelInstanceGroup.KIND_CPU:
            group.kind = schema.ModelInstanceGroup.KIND_AUTO


def link_view(configs: Mapping[str, ModelConfig], staged: Path, view: Path) -> None:
    """A repository of links in an empty folder: the staged models, and the others as they are.

    Its ensembles ask for the newest of their parts: what names a version names that of the float repository.
    """
    changed = {path.name: path for path in staged.iterdir() if path.is_dir() and not path.name.startswith(".")}
    for name, config in configs.items():
        folder = changed.get(name, config.source.parent)
        if not config.steps:
            (view / name).symlink_to(folder.resolve(), target_is_directory=True)
            continue
        (view / name / "1").mkdir(parents=True)
        message = read_config(config.source)
        message.ClearField("version_policy")
        for step in message.ensemble_scheduling.step:
            step.model_version = -1
        (view / name / CONFIG).write_text(as_text(message), encoding="utf-8")
