"""If these fail, published weights answer other joints than in their own code: beside the body, mirrored, or at random.

The weights are random and the networks small, but under the published names (``published_layouts``), which are compared
with the imported network, its decoder and its flip average, and with the exported models over HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision.models import get_model
from typer.testing import CliRunner

from export.checkpoints import PoseSource, read_checkpoints
from export.pose import FlipAverage, PoseFusion, PoseHeads
from service.crops import box_crop_matrices, crop_people
from tests.overfitting import Sixteen
from tests.test_every_network import ask, export
from tests.training.published_layouts import (
    JOINTS,
    HRNet,
    MspnBlock,
    MultiStage,
    PoseResNet,
    RsnBlock,
    as_mmpose,
    bgr,
    bgr_with_means_of_rgb,
    rgb,
)
from training.__main__ import app
from training.checkpoint_engine import CheckpointEngine
from training.conventions import flip_shift
from training.datasets.coco import read_rgb
from training.networks.hrnet import HRNetConfig
from training.pretrained.catalogue import PUBLISHED
from training.pretrained.checkpoint import import_pose
from training.pretrained.weights import Imported, PretrainedError, fit

Array = npt.NDArray[np.float64]
WIDTH, HEIGHT = 96, 128
NEAR = 0.05  # crop pixels; a crop is cut from about as many of the picture
PAIRS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]


@dataclass(frozen=True)
class Layout:
    """A published network, how its code reads crops, and the height of its peaks."""

    name: str
    make: Callable[[], nn.Module]
    read: Callable[[Tensor], Tensor]
    decode: Callable[[Array], Array]
    shift: float
    peak: float = 1.0
    mmpose: bool = False
    padding: float = 1.25


def quarter(heat: Array) -> Array:
    """HRNet and the simple baseline: highest cell, a quarter towards the higher neighbour, times four."""
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    px, py = float(x), float(y)
    if 0 < x < heat.shape[1] - 1 and 0 < y < heat.shape[0] - 1:
        px += 0.25 * np.sign(heat[y, x + 1] - heat[y, x - 1])
        py += 0.25 * np.sign(heat[y + 1, x] - heat[y - 1, x])
    return np.array([px * 4, py * 4])


def second_highest(heat: Array) -> Array:
    """MSPN and RSN: filtered, a quarter cell on the way to the second highest one, times four plus two."""
    padded = np.pad(heat, 10)
    smooth = cv2.GaussianBlur(padded, (5, 5), 0)[10:-10, 10:-10].copy()
    first = np.array(np.unravel_index(smooth.argmax(), smooth.shape))[::-1].astype(float)
    smooth[int(first[1]), int(first[0])] = 0
    second = np.array(np.unravel_index(smooth.argmax(), smooth.shape))[::-1].astype(float)
    way = second - first
    return (first + 0.25 * way / np.linalg.norm(way)) * 4 + 2


LAYOUTS = [
    Layout("hrnet", HRNet, rgb, quarter, 0.75),
    Layout("hrnet", HRNet, rgb, quarter, 0.75, mmpose=True),
    Layout("simple_baseline", PoseResNet, bgr_with_means_of_rgb, quarter, 0.75),
    Layout("simple_baseline", PoseResNet, rgb, quarter, 0.75, mmpose=True),
    Layout("mspn", lambda: MultiStage(MspnBlock), bgr, second_highest, -0.25, 255.0, padding=1.135),
    Layout("mspn", lambda: MultiStage(MspnBlock), rgb, second_highest, -0.25, 255.0, mmpose=True),
    Layout("rsn", lambda: MultiStage(RsnBlock), bgr, second_highest, -0.25, 255.0, padding=1.135),
    Layout("rsn", lambda: MultiStage(RsnBlock), rgb, second_highest, -0.25, 255.0, mmpose=True),
]
NAMES = [f"{layout.name}{'-mmpose' if layout.mmpose else ''}" for layout in LAYOUTS]


def random_crops(count: int, seed: int = 0) -> Tensor:
    """Soft blots of colour, as pictures have; uint8 [N, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, HEIGHT // 8, WIDTH // 8, generator=generator) * 255
    fine = nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@torch.no_grad()
def randomised(layout: Layout) -> nn.Module:
    """Random weights whose maps lie around a third of the height of a peak, and somewhere near the whole."""
    torch.manual_seed(3)
    network = layout.make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, nn.Conv2d) and module.bias is not None and layout.mmpose:
            nn.init.zeros_(module.bias)  # mmpose has none
    crops = layout.read(random_crops(4, seed=9))
    for _ in range(20):
        network(crops)
    maps = network.eval()(crops)
    last = network.final_layer if hasattr(network, "final_layer") else network.stage1.upsample.up4.res_conv2.bn
    scale = 0.15 * layout.peak / maps.std((0, 2, 3))
    last.weight.mul_(scale.reshape(-1, *[1] * (last.weight.ndim - 1)))
    # Positive where the peaks are, as around a Gaussian's.
    last.bias.copy_(last.bias * scale + 0.35 * layout.peak - maps.mean((0, 2, 3)) * scale)
    return network


def save(layout: Layout, network: nn.Module, folder: Path) -> Path:
    """As the projects save: the authors' plain, from data-parallel training; mmpose's with arrays in its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{layout.name}.pth"
    if layout.mmpose:
        meta = {"dataset_meta": {"sigmas": np.ones(JOINTS, np.float32)}, "time": "now"}
        torch.save({"meta": meta, "state_dict": as_mmpose(network.state_dict())}, path)
    else:
        torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module", params=LAYOUTS, ids=NAMES)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Layout, nn.Module, Path]:
    """A layout, its network, and the checkpoint imported from it."""
    layout: Layout = request.param
    network = randomised(layout)
    folder = tmp_path_factory.mktemp(layout.name)
    return (
        layout,
        network,
        import_pose(layout.name, save(layout, network, folder), folder / "model.pt", size=(WIDTH, HEIGHT)),
    )


@torch.no_grad()
def original(layout: Layout, network: nn.Module, crops: Tensor, *, flip: bool) -> tuple[Array, Array]:
    """Places [N, K, 2] in crop pixels by the published code's rules, and heights [N, K] of the maps there."""
    maps = network(layout.read(crops)).double().numpy()
    if flip:
        mirrored = network(layout.read(crops.flip(2))).double().numpy()[..., ::-1]
        order = list(range(JOINTS))
        for left, right in PAIRS:
            order[left], order[right] = right, left
        columns = np.arange(maps.shape[-1])
        # Moved by the part of a cell that the convention costs, where the published code moves a whole one or none.
        # What is negative says nothing: it is cut before the average.
        back = np.apply_along_axis(
            lambda row: np.interp(columns - layout.shift, columns, row), -1, mirrored[:, order].clip(0)
        )
        maps = (maps.clip(0) + back) / 2
    places = np.array([[layout.decode(heat) for heat in person] for person in maps])
    return places, maps.max((2, 3))


@torch.no_grad()
def served(source: PoseSource, crops: Tensor, *, flip: bool) -> tuple[Array, Array]:
    """Places and scores by the modules that export turns into graphs."""
    heads = PoseHeads(source.networks[0], source.recipes[0].radii)
    fusion = PoseFusion(
        source.joints, source.presets[0], source.stride, source.refinement, sigma=source.sigma,
        convention=source.convention,
    )  # fmt: skip
    maps = heads(crops)
    if flip:
        average = FlipAverage(source.joints, flip_shift(source.convention, source.stride))
        maps = average(maps, heads(crops.flip(2)))
    found = fusion(maps, torch.ones(len(crops), 1)).double().numpy()
    return found[..., :2], found[..., 2]


@pytest.mark.parametrize("flip", [False, True], ids=["straight", "flip"])
def test_an_import_answers_what_the_published_code_answers(
    published: tuple[Layout, nn.Module, Path], flip: bool
) -> None:
    layout, network, checkpoint = published
    source, _ = read_checkpoints([checkpoint])
    assert source is not None and source.padding == layout.padding
    crops = random_crops(3)
    expected, heights = original(layout, network, crops, flip=flip)
    found, scores = served(source, crops, flip=flip)
    assert np.abs(found - expected).max() < NEAR
    # Joint scores are the height of the peak, whatever height the project trains on, and stay within 0..1.
    np.testing.assert_allclose(scores, (heights / layout.peak).clip(0, 1), atol=1e-3)
    assert heights.min() < layout.peak


def test_the_card_says_where_the_weights_are_from(published: tuple[Layout, nn.Module, Path]) -> None:
    layout, _, checkpoint = published
    story = json.loads(checkpoint.with_suffix(".json").read_text())
    assert story["imported"]["layout"].endswith("mmpose names it" if layout.mmpose else "its authors name it")
    assert story["imported"]["file"] == f"{layout.name}.pth" and len(story["imported"]["sha256"]) == 64
    assert story["recipe"]["steps"] == 0 and not story["recipe"]["data"]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 2, 4], ids=[NAMES[index] for index in (0, 2, 4)])
async def test_exported_imports_answer_over_http(index: int, people16: Sixteen, tmp_path: Path) -> None:
    layout = LAYOUTS[index]
    network = randomised(layout)
    checkpoint = import_pose(layout.name, save(layout, network, tmp_path), tmp_path / "model.pt", size=(WIDTH, HEIGHT))
    repository = await export([checkpoint], tmp_path / "models", people16, "--precision", "fp32")
    people = people16.people()[:4]
    far = []
    for flip in (False, True):
        answers = await ask(repository, people, **({"flip": "true"} if flip else {}))
        for (path, (x, y, width, height)), answer in zip(people, answers, strict=True):
            boxes = np.array([[x, y, x + width, y + height]])
            matrix = box_crop_matrices(boxes, (WIDTH, HEIGHT), layout.padding)[0]
            crops = torch.from_numpy(crop_people(read_rgb(path), matrix[None], (WIDTH, HEIGHT)))
            expected, _ = original(layout, network, crops, flip=flip)
            inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
            far.append(np.abs(answer - (expected[0] @ inverse[:, :2].T + inverse[:, 2])) > NEAR)
    # Two neighbours of a random map's peak may be equal but for rounding: then the sign of the quarter is too.
    assert np.mean(far) <= 0.01, f"{np.sum(far)} of {np.size(far)} coordinates"


@pytest.fixture
def hrnet_file(tmp_path: Path) -> tuple[dict[str, Tensor], Path]:
    return HRNet().state_dict(), tmp_path / "weights.pth"


def refused(path: Path, layout: str, **options: Any) -> str:
    with pytest.raises(PretrainedError) as caught:
        import_pose(layout, path, path.with_name("model.pt"), **options)
    assert str(path) in str(caught.value) and not path.with_name("model.pt").exists()
    return str(caught.value)


def test_partial_and_foreign_weights_are_refused_by_name(hrnet_file: tuple[dict[str, Tensor], Path]) -> None:
    state, path = hrnet_file
    lost = {name: value for name, value in state.items() if not name.startswith("stage4.0.branches.3.1.bn2")}
    torch.save(lost, path)
    assert "stage4.0.branches.3.1.bn2.weight" in refused(path, "hrnet")
    torch.save({**state, "offset_head.weight": torch.zeros(2)}, path)
    assert "nothing to do with 1 names: offset_head.weight" in refused(path, "hrnet")
    torch.save({**state, "conv2.weight": torch.zeros(16, 16, 5, 5)}, path)
    assert "conv2.weight ([16, 16, 5, 5], [16, 16, 3, 3] expected)" in refused(path, "hrnet")
    torch.save(state, path)
    for other in ("mspn", "rsn", "simple_baseline"):
        assert "not weights of" in refused(path, other)
    torch.save(MultiStage(MspnBlock).state_dict(), path)
    assert "encoders.0.layer1.0.steps.0.0.0.weight" in refused(path, "rsn")
    assert "stage2.0.branches" in refused(path, "hrnet")
    torch.save(MultiStage(RsnBlock).state_dict(), path)
    said = refused(path, "mspn")
    assert "encoders.0.layer1.0.conv3.weight" in said and "lacks" in said


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    assert "No such file" in refused(path, "hrnet")
    path.write_bytes(b"<html>please log in</html>")
    assert "cannot be read as weights" in refused(path, "mspn")
    torch.save({"epoch": 3}, path)
    assert "holds no tensors by name, but epoch" in refused(path, "mspn")


def test_joints_crops_and_counters(hrnet_file: tuple[dict[str, Tensor], Path]) -> None:
    state, path = hrnet_file
    fourteen = {**state, "final_layer.weight": torch.zeros(14, 8, 1, 1), "final_layer.bias": torch.zeros(14)}
    torch.save(fourteen, path)
    assert "say which with --skeleton, one of lsp14, aic14, crowdpose14" in refused(path, "hrnet")
    assert "14 joints are not coco17" in refused(path, "hrnet", skeleton="coco17")
    assert "multiples of 32" in refused(path, "hrnet", skeleton="aic14", size=(100, 128))
    # torch before 0.4.1 kept no counters of batch normalisation.
    old = {name: value for name, value in fourteen.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, path)
    source, _ = read_checkpoints([import_pose("hrnet", path, path.with_name("model.pt"), skeleton="aic14")])
    assert source is not None and source.joints.name == "aic14" and source.size == (192, 256)


@pytest.mark.parametrize("width", [32, 48])
def test_published_sizes_are_recognised(width: int) -> None:
    with torch.device("meta"):
        network = HRNetConfig(width=width).build(JOINTS, ["medium"])
    from training.pretrained.single_stage import hrnet

    imported: Imported = hrnet(as_mmpose(network.state_dict()))
    assert imported.network == HRNetConfig(width=width)
    assert len(fit(imported, "meta")) == len(network.state_dict())


def test_a_run_starts_from_an_import(published: tuple[Layout, nn.Module, Path], tmp_path: Path) -> None:
    from training.initialisation import load_matching
    from training.pose import build_pose_network, load_pose_checkpoint

    _, _, checkpoint = published
    recipe, network = load_pose_checkpoint(checkpoint)
    fresh = build_pose_network(recipe)
    count = len(network.state_dict())
    assert load_matching(fresh, checkpoint) == (count, count)


def test_without_internet_the_file_and_the_option_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", cut_off)
    monkeypatch.setattr("torch.hub.urlopen", cut_off)
    for name, file in (
        ("hrnet_w32", "hrnet_w32_coco_256x192-c78dce93_20200708.pth"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"),
    ):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
        result = CliRunner().invoke(app, ["fetch-pretrained", name, "--output", str(tmp_path)])
        assert result.exit_code == 1
        assert file in result.output and "--file /path/to/" in result.output and "licence:" in result.output
        assert not (tmp_path / name / "model.pt").exists()


def test_imports_are_not_read_as_ours(published: tuple[Layout, nn.Module, Path]) -> None:
    # Evaluation straight from checkpoints decodes by our own convention.
    with pytest.raises(ValueError, match="imported weights, decoded otherwise than ours"):
        CheckpointEngine([published[2]])


def test_a_download_of_something_else_is_refused(tmp_path: Path) -> None:
    layout = LAYOUTS[1]
    file = save(layout, layout.make(), tmp_path)
    result = CliRunner().invoke(app, ["fetch-pretrained", "hrnet_w32", "--output", str(tmp_path), "--file", str(file)])
    assert result.exit_code == 1 and "begins with" in result.output and "c78dce93" in result.output
    assert not (tmp_path / "hrnet_w32" / "model.pt").exists()


def test_a_detector_keeps_its_categories_and_scores(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.manual_seed(0)
    theirs = get_model(name, weights=None, weights_backbone=None, num_classes=91)
    file = tmp_path / f"{name}-907ea3f9.pth"
    torch.save(theirs.state_dict(), file)
    result = CliRunner().invoke(app, ["fetch-pretrained", name, "--output", str(tmp_path), "--file", str(file)])
    assert result.exit_code == 0, result.output
    _, source = read_checkpoints([tmp_path / name / "model.pt"])
    assert source is not None and source.data == () and source.recipe.network.every_category
    own = source.network.state_dict()
    # Batch normalisation is frozen, so it has lost its counters.
    wanted = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert all(torch.equal(own[f"model.{k}"], v) for k, v in wanted.items())
    assert own.keys() - {f"model.{k}" for k in theirs.state_dict()} == set()
    torch.save(get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None).state_dict(), file)
    result = CliRunner().invoke(app, ["fetch-pretrained", name, "--output", str(tmp_path / "b"), "--file", str(file)])
    assert result.exit_code == 1 and "not weights of this network" in result.output
    assert not (tmp_path / "b" / name / "model.pt").exists()


@pytest.mark.slow
def test_training_starts_from_an_import(people16: Sixteen, tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    checkpoint = import_pose("hrnet", save(layout, randomised(layout), tmp_path), tmp_path / "model.pt")
    recipe = json.loads(checkpoint.with_suffix(".json").read_text())["recipe"] | {
        "data": [{"annotations": str(people16.annotations), "images": str(people16.images)}],
        "width": WIDTH, "height": HEIGHT, "min_joints": 1, "holdout": 0, "batch": 4, "precision": "32-true",
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    arguments = ["pose", "--recipe", str(path), "--output", str(tmp_path / "run"), "--init", str(checkpoint)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "steps: 0 trains nothing" in result.output
    result = CliRunner().invoke(app, [*arguments, "--set", "steps=2"])
    assert result.exit_code == 0, result.output
    count = len(layout.make().state_dict())
    assert f"initialised {count} of {count} tensors" in " ".join(result.output.split())
    # What came out is ours: drawn and decoded by our own convention.
    source, _ = read_checkpoints([tmp_path / "run" / "model.pt"])
    assert source is not None and source.convention == "pixel_centre"


def test_the_catalogue_is_listed_and_known_to_the_importers(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch-pretrained"], env={"COLUMNS": "250"})
    assert result.exit_code == 0 and all(entry.name in result.output for entry in PUBLISHED)
    assert len({entry.name for entry in PUBLISHED}) == len(PUBLISHED)
    assert all(len(entry.hash_prefix or "") == 8 for entry in PUBLISHED if entry.source.startswith("https://"))
    result = CliRunner().invoke(app, ["fetch-pretrained", "hrnet_w33", "--output", str(tmp_path)])
    assert result.exit_code == 1 and "unknown weights 'hrnet_w33'" in result.output
