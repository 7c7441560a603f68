"""Stage `pose`: train a pose network on person crops of one or several data sets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.datasets.coco import DatasetError
from training.datasets.crops import CropSource
from training.datasets.patches import Patches, cut_patches
from training.datasets.reading import read_set
from training.datasets.union import PoseSample, pose_samples
from training.held_out import HeldOut, held_out_oks, predict_crops
from training.initialisation import gaussian_, load_backbones, load_matching, load_wider
from training.networks.base import PoseNet
from training.pose_recipe import PoseRecipe
from training.processes import make_fabric
from training.recipe import RecipeError, read_recipe
from training.run import Run, seed_everything
from training.trainer import Trainer

__all__ = [
    "PoseRecipe",
    "build_pose_network",
    "held_out_oks",
    "load_pose_checkpoint",
    "predict_crops",
    "train_pose",
]

console = Console()
# Part of the GPU's free memory that patches may take by themselves; the network's maps need the rest.
_DEVICE_SHARE = 0.5


def build_pose_network(recipe: PoseRecipe) -> PoseNet:
    """The network a recipe describes, freshly initialised."""
    network = recipe.network.build(len(recipe.joints), [r.name for r in recipe.radii])
    if recipe.gaussian:
        gaussian_(network, recipe.gaussian)
    return network


def load_pose_checkpoint(path: Path) -> tuple[PoseRecipe, PoseNet]:
    """Recipe and trained network of a ``model.pt``. Raises ValueError when it holds something else."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved.get("kind") != "pose":
        raise ValueError(f"{path} holds a {saved.get('kind')!r}, not a pose network")
    recipe = PoseRecipe.model_validate(saved["recipe"])
    network = build_pose_network(recipe)
    network.load_state_dict(saved["weights"])
    return recipe, network.eval()


def train_pose(recipe_path: Path, output: Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Train; returns the path of ``model.pt``.

    Raises:
        RecipeError, DatasetError, RunError, InitialisationError, ProcessError, TrainingError: what was given cannot
            be used, or the run failed; names what. The last checkpoint is intact.
    """
    recipe = read_recipe(recipe_path, PoseRecipe, overrides)
    if not recipe.steps:
        raise RecipeError(f"{recipe_path}: steps: 0 trains nothing")
    fabric = make_fabric(recipe.devices, recipe.precision)
    fabric.launch()
    console.quiet = not fabric.is_global_zero
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    seed_everything(recipe.seed)
    run = Run(output, recipe, resume=resume, write=fabric.is_global_zero)
    sets = [read_set(source) for source in recipe.data]
    train, repeats, held = pose_samples(sets, recipe.joints, min_joints=recipe.min_joints, holdout=recipe.holdout)
    console.print(f"{len(train)} people to train on, {len(held)} held out, from {[s.name for s in sets]}")
    state = run.load() if resume else None
    trainer = Trainer(recipe, fabric, _fresh_network(recipe, starting=state is None))
    if state is not None:
        trainer.restore(state)
        console.print(f"going on from step {trainer.step}")
    source = crop_source(recipe, fabric, train)
    watch = HeldOut(recipe, held, fabric.device) if held and fabric.is_global_zero else None
    watched = trainer.fit(source, repeats, watch, run, console)
    facts = {
        "data": {"sets": [s.name for s in sets], "people": len(train), "held_out": len(held)},
        "metrics": watched,
    }
    path = run.finish("pose", {name: value.cpu() for name, value in trainer.ema.state.items()}, facts)
    run.close()
    console.print(f"wrote {path}")
    return path


def _fresh_network(recipe: PoseRecipe, *, starting: bool) -> PoseNet:
    network = build_pose_network(recipe)
    if starting and recipe.init_backbone:
        loaded, total = load_backbones(network, recipe.init_backbone)
        console.print(f"backbones start from {recipe.init_backbone}: {loaded} of {total} tensors")
    if starting and recipe.init:
        load = load_wider if recipe.init_wider else load_matching
        loaded, total = load(network, recipe.init)
        console.print(f"initialised {loaded} of {total} tensors from {recipe.init}")
    return network


def crop_source(recipe: PoseRecipe, fabric: Fabric, people: Sequence[PoseSample]) -> CropSource:
    """Cut the people out and put them where the recipe's ``memory`` says; tells how much they take.

    Raises:
        DatasetError: a picture that is missing or broken, or too little memory.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # With a shared file the first process writes it and the others map it.
    first = fabric.rank_zero_first(local=True) if recipe.cache else nullcontext()
    with first, Progress(*columns, console=console) as progress:
        task = progress.add_task("reading people", total=len(people))
        patches = cut_patches(
            people,
            recipe.patch_size(recipe.augmentation),
            threads=recipe.workers or None,
            cache=recipe.cache,
            done=lambda count: progress.advance(task, count),
        )
    resident = _resident(recipe, fabric.device, patches)
    place = f"on {fabric.device}" if resident else f"in the file {recipe.cache}" if recipe.cache else "in host memory"
    console.print(f"{len(patches)} people decoded: {len(patches.pixels) / 2**20:,.0f} MiB {place}")
    return CropSource(
        people, patches, recipe.joints, recipe.size, recipe.augmentation, recipe.seed, fabric.device, resident=resident
    )


def _resident(recipe: PoseRecipe, device: torch.device, patches: Patches) -> bool:
    if device.type != "cuda" or recipe.memory == "host":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    needed = len(patches.pixels)
    if recipe.memory == "device" and needed > free:
        raise DatasetError(
            f"memory: device: the people take {needed / 2**30:.1f} GiB, {device} has {free / 2**30:.1f} GiB free"
        )
    return recipe.memory == "device" or needed <= _DEVICE_SHARE * free
