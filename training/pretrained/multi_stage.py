"""MSPN and RSN as Megvii's code and mmpose name them.

Their maps have peak 255 and a joint at ``floor(x / 4)``; the published code adds one half to a peak of 255 and calls
that the score. Here the last normalisation of every head is divided by 255, so that maps have peak 1 as ours and the
score is the peak itself: near 0 where nothing was found. Megvii's code reads pictures as blue, green, red, mmpose as
red, green, blue; both enlarge maps with ``align_corners``.
"""

from __future__ import annotations

import re

from service.crops import PADDING
from training.networks.mspn import MSPNConfig
from training.networks.rsn import RSNConfig
from training.pretrained.single_stage import from_mmpose
from training.pretrained.weights import (
    Imported,
    PretrainedError,
    Rule,
    Weights,
    count,
    rename,
    reverse_colours,
    size_of,
)

_PEAK = 255.0
_FIRST = "encoders.0.conv1.weight"
# Megvii's tests widen a box by 1.135 along its height and 1.09 along its width, then to the crop's shape; standing
# people fill the height. mmpose has 1.25 for all its networks, as we do.
_MEGVII_PADDING = 1.135
_PART = {"conv": "0", "bn": "1"}
_UNITS = {"u_skip": "laterals", "in_skip": "laterals", "up_conv": "enlarged"}
_UNITS |= {"skip1": "down", "out_skip1": "down", "skip2": "up", "out_skip2": "up"}
# Channels of one of RSN's branches, in 64ths of the block's input.
_PUBLISHED_BRANCH = 26


def _encoder(match: re.Match[str]) -> str:
    stage, block, rest = match.groups()
    rest = re.sub(r"^conv_bn_relu(\d)\.(conv|bn)\.", r"\2\1.", rest)
    return f"encoders.{stage}.{block}.{_numbered('downsample', rest)}"


def _steps_encoder(match: re.Match[str]) -> str:
    stage, block, rest = match.groups()
    if step := re.match(r"conv_bn_relu2_(\d)_(\d)\.(conv|bn)\.(.*)", rest):
        rest = f"steps.{int(step[1]) - 1}.{int(step[2]) - 1}.{_PART[step[3]]}.{step[4]}"
    for theirs, ours in (("conv_bn_relu1", "enter"), ("conv_bn_relu3", "leave"), ("conv_bn3", "leave")):
        rest = _numbered(theirs, rest, ours)
    return f"encoders.{stage}.{block}.{_numbered('downsample', rest, 'shortcut')}"


def _numbered(part: str, rest: str, ours: str = "") -> str:
    """``part.conv.weight`` to ``ours.0.weight``."""
    return re.sub(rf"^{part}\.(conv|bn)\.", lambda m: f"{ours or part}.{_PART[m[1]]}.", rest)


def _unit(match: re.Match[str]) -> str:
    stage, number, name, part, rest = match.groups()
    unit = int(number) - 1  # coarse to fine
    tail = f"{_PART[part]}.{rest}"
    if name == "cross_conv":
        return f"carries.{stage}.cross.{tail}"
    if name.startswith("res_conv"):
        return f"decoders.{stage}.heads.{unit}.{int(name[-1]) - 1}.{tail}"
    ours = _UNITS[name]
    if ours in ("down", "up"):
        return f"carries.{stage}.{ours}.{3 - unit}.{tail}"
    return f"decoders.{stage}.{ours}.{unit - (ours == 'enlarged')}.{tail}"


def _mmpose_head(match: re.Match[str]) -> str:
    number, layer, part, rest = match.groups()
    return f"decoders.{int(number) // 4}.heads.{int(number) % 4}.{layer}.{_PART[part]}.{rest}"


_STAGE = r"(?:stage|backbone\.multi_stage_(?:mspn|rsn)\.)(\d)"
_UNIT_NAMES = "|".join((*_UNITS, "cross_conv", "res_conv1", "res_conv2"))
_SHARED: tuple[Rule, ...] = (
    (r"(?:top\.conv|backbone\.top\.top\.0)\.(conv|bn)\.(.*)", r"encoders.0.\g<1>1.\2"),
    (rf"{_STAGE}\.upsample\.up(\d)\.({_UNIT_NAMES})\.(conv|bn)\.(.*)", _unit),
    (r"(?:keypoint_)?head\.predict_layers\.(\d+)\.conv_layers\.(\d)\.(conv|bn)\.(.*)", _mmpose_head),
)
_BLOCKS = rf"{_STAGE}\.downsample\.(layer\d\.\d+)\.(.*)"


def mspn(weights: Weights) -> Imported:
    """MSPN by Megvii's names or mmpose's."""
    theirs = from_mmpose(weights)
    ours = rename(weights, (*_SHARED, (_BLOCKS, _encoder)))
    stages, layers = _plan(ours, "MSPN")
    network = MSPNConfig(
        stages=stages,
        layers=layers,
        width=size_of(ours, _FIRST, 0, "MSPN"),
        features=size_of(ours, "decoders.0.laterals.0.0.weight", 0, "MSPN"),
        align_corners=True,
    )
    return _imported("MSPN", network, ours, theirs)


def rsn(weights: Weights) -> Imported:
    """RSN by its authors' names, which are MSPN's around another block, or mmpose's."""
    theirs = from_mmpose(weights)
    ours = rename(weights, (*_SHARED, (_BLOCKS, _steps_encoder)))
    stages, layers = _plan(ours, "RSN")
    width = size_of(ours, _FIRST, 0, "RSN")
    network = RSNConfig(
        stages=stages,
        layers=layers,
        width=width,
        features=size_of(ours, "decoders.0.laterals.0.0.weight", 0, "RSN"),
        branch=_branch(ours, width),
        prm=False,
        align_corners=True,
    )
    return _imported("RSN", network, ours, theirs)


def _plan(ours: Weights, layout: str) -> tuple[int, tuple[int, int, int, int]]:
    """Stages, and blocks of the four levels."""
    stages = count(ours, r"encoders\.(\d+)\.layer1\.")
    one, two, three, four = (count(ours, rf"encoders\.0\.layer{level}\.(\d+)\.") for level in (1, 2, 3, 4))
    if not (stages and one and two and three and four):
        raise PretrainedError(f"not weights of {layout}: no stages of four levels among {len(ours)} tensors")
    return stages, (one, two, three, four)


def _branch(ours: Weights, width: int) -> int:
    """RSN's ``branch`` for which the first blocks of all levels have the branches that they have."""
    inputs = [width, width, width * 2, width * 4]
    seen = [size_of(ours, f"encoders.0.layer{level}.0.steps.0.0.0.weight", 0, "RSN") for level in (1, 2, 3, 4)]
    for branch in (_PUBLISHED_BRANCH, *range(1, 65)):
        if [channels * branch // 64 for channels in inputs] == seen:
            return branch
    raise PretrainedError(f"not weights of RSN: branches of {seen} channels in blocks of {inputs}")


def _imported(layout: str, network: MSPNConfig | RSNConfig, ours: Weights, theirs: bool) -> Imported:
    if theirs:
        # Its convolutions have no bias where a normalisation follows, which is everywhere.
        for name in [n for n in ours if re.search(r"(?:conv\d|\.0)\.weight$", n) and ours[n].ndim == 4]:
            ours.setdefault(name.removesuffix("weight") + "bias", ours[name].new_zeros(len(ours[name])))
    else:
        reverse_colours(ours, _FIRST)
    for name in [n for n in ours if re.fullmatch(r"decoders\.\d\.heads\.\d\.1\.1\.(weight|bias)", n)]:
        ours[name] = ours[name] / _PEAK
    return Imported(
        layout=f"{layout} as {'mmpose names' if theirs else 'its authors name'} it",
        network=network,
        weights=ours,
        joints=size_of(ours, "decoders.0.heads.3.1.0.weight", 0, layout),
        convention="megvii",
        refinement="megvii",
        padding=PADDING if theirs else _MEGVII_PADDING,
    )
