"""If these fail, training on several GPUs is another training than the recipe describes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning_fabric import Fabric
from torch import nn

from training.processes import GlobalBatchNorm, ProcessError, part_of_batch, synchronise_batch_norm

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import json, sys
from pathlib import Path
import torch
from training.pose import train_pose
from training.trainer import Trainer

losses, one_step = [], Trainer.optimise

def recorded(self, batch):
    values = one_step(self, batch)
    losses.append(values["loss/all"])
    return values

Trainer.optimise = recorded
if __name__ == "__main__":
    recipe, output = map(Path, sys.argv[1:3])
    train_pose(recipe, output, sys.argv[3:])
    import os
    (output / f"losses{os.environ.get('RANK', 0)}.json").write_text(json.dumps(losses))
"""


@pytest.fixture
def recipe(tmp_path: Path, rendered_data: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    source = {"annotations": str(rendered_data / "annotations.json"), "images": str(rendered_data / "images")}
    settings = {
        "data": [source], "width": 64, "height": 64, "network": {"stacks": 2, "width": 16, "dense": True},
        "radii": [{"name": "medium", "kind": "softmax", "sigma": 1.5}],
        # People are chosen by what the first stack finds, in whichever process they are.
        "supervision": {"hard_samples": [0.9], "hard_joints": 4},
        "steps": 3, "batch": 16, "holdout": 0.2, "threads": 1, "precision": "32-true",
        # Plain steps: Adam would blow rounding up where a gradient is near zero.
        "optimiser": "sgd", "learning_rate": 0.01, "warmup": 1, "ema": 0.5,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def _train(recipe: Path, output: Path, processes: int, *more: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    worker = recipe.parent / "worker.py"
    worker.write_text(WORKER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(worker), str(recipe), str(output), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [json.loads((output / f"losses{rank}.json").read_text()) for rank in range(processes)]
    assert losses[0] == losses[-1]
    return torch.load(output / "model.pt", weights_only=True)["weights"], np.array(losses[0])


def test_two_processes_do_what_one_does(recipe: Path, tmp_path: Path) -> None:
    """The same losses, weights and batch statistics on the same global batches, up to rounding."""
    one, losses = _train(recipe, tmp_path / "one", 1)
    two, same = _train(recipe, tmp_path / "two", 2)
    np.testing.assert_allclose(same[:2], losses[:2], rtol=1e-4)
    np.testing.assert_allclose(same, losses, rtol=1e-3)
    for name, value in one.items():
        # The deepest maps are one cell: their statistics, over 16 numbers, blow rounding up.
        torch.testing.assert_close(two[name], value, rtol=2e-2, atol=2e-2 if "running" in name else 2e-3, msg=name)


@pytest.mark.slow
def test_without_statistics_of_the_whole_batch_two_processes_differ(recipe: Path, tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    _, losses = _train(recipe, tmp_path / "one", 1)
    _, apart = _train(recipe, tmp_path / "apart", 2, "sync_batchnorm=false")
    assert np.abs(apart / losses - 1).max() > 2e-3


def test_a_batch_that_cannot_be_shared_is_named() -> None:
    class Three:
        world_size, global_rank = 3, 1

    with pytest.raises(ProcessError, match="32 cannot be shared by 3"):
        part_of_batch(32, Three())  # type: ignore[arg-type]
    assert part_of_batch(33, Three()) == slice(11, 22)  # type: ignore[arg-type]
    assert part_of_batch(32, Fabric(accelerator="cpu", devices=1)) == slice(0, 32)


def test_batch_norm_of_all_processes_is_torchs_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients and running statistics; and weights keep their names."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3))
        ours = synchronise_batch_norm(
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3)), torch.device("cpu")
        )
        assert isinstance(ours[1], GlobalBatchNorm)  # type: ignore[index]
        ours.load_state_dict(plain.state_dict())
        images = torch.randn(4, 3, 8, 9)
        for network in (plain, ours):
            network(images).pow(3).sum().backward()
        for (name, a), b in zip(plain.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-3, msg=name)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
        torch.testing.assert_close(ours.eval()(images), plain.eval()(images))
    finally:
        torch.distributed.destroy_process_group()
