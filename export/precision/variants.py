"""A repository with some networks in another precision: a new version of them, or a whole sibling repository."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from export.repository import CARD, CONFIG, next_version
from service.engines.config import ModelConfig

_HEADER = "# Written by `python -m export`; the next export writes it anew.\n"


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
        text = config.source.read_text(encoding="utf-8")
        (staged / name / CONFIG).write_text(changed_config(text, change) if change else text, encoding="utf-8")
        card = config.source.parent / CARD
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {name}\n"
        if change:
            (staged / name / CARD).write_text(f"{before.rstrip()}\n\n{change.card}", encoding="utf-8")
        elif card.is_file():
            shutil.copyfile(card, staged / name / CARD)
    return version


def changed_config(text: str, change: Converted) -> str:
    """A config with the conversion's parameters, and its platform where that is another one."""
    config = text_format.Parse(text, schema.ModelConfig())
    for key, value in change.parameters.items():
        config.parameters[key].string_value = value
    config.ClearField("default_model_filename")
    if change.platform:
        config.platform = change.platform
        config.ClearField("backend")
        # Accelerators, graph levels and thread counts speak to ONNX Runtime's back end.
        config.ClearField("optimization")
        for key in [key for key in config.parameters if key.startswith("session.") or key in _OF_ONNX_RUNTIME]:
            del config.parameters[key]
        for group in config.instance_group:
            if group.kind == schema.ModelInstanceGroup.KIND_CPU:
                group.kind = schema.ModelInstanceGroup.KIND_AUTO
    return _HEADER + text_format.MessageToString(config)


_OF_ONNX_RUNTIME = frozenset(
    ("intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern")
)
