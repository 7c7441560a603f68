"""``python -m training``: one command for each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.ablation.command import ablate
from training.evaluation_command import evaluate
from training.negatives_command import mine_negatives
from training.networks.command import networks
from training.pose_command import pose, profile, starting_from, told
from training.pretrained.command import fetch_pretrained, import_pose
from training.pseudo_label_command import pseudo_label
from training.selection_command import select_data, select_hard

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train and measure tritonpose's networks.")

Recipe = Annotated[Path, typer.Option("--recipe", exists=True, dir_okay=False, help="YAML recipe")]
Output = Annotated[Path, typer.Option("--output", help="folder of the run")]
Overrides = Annotated[list[str], typer.Option("--set", help="field=value, overrides the recipe; repeatable")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in --output")]


@app.command()
def detector(
    recipe: Recipe,
    output: Output,
    overrides: Overrides = [],  # noqa: B006
    resume: Resume = False,
    init: Annotated[
        str | None,
        typer.Option("--init", help="coco, a .pth or a model.pt of the same torchvision network to start from"),
    ] = None,
) -> None:
    """Train a person detector."""
    with told("detector"):
        from training.detector import train_detector

        train_detector(recipe, output, [*overrides, *starting_from("network.init", init)], resume)


app.command()(pose)
app.command()(profile)
app.command()(evaluate)
app.command()(networks)
app.command()(select_data)
app.command()(select_hard)
app.command()(pseudo_label)
app.command()(mine_negatives)
app.command()(ablate)
app.command()(fetch_pretrained)
app.command()(import_pose)


@app.command()
def search(
    recipe: Recipe,
    output: Output,
    overrides: Overrides = [],  # noqa: B006
    resume: Resume = False,
    random: Annotated[bool, typer.Option("--random", help="draw random blocks, to compare with")] = False,
) -> None:
    """Search for a network block by Q-learning."""
    from training.search.search import search_blocks

    search_blocks(recipe, output, overrides, resume=resume, random=random)


if __name__ == "__main__":
    app()
