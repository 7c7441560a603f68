"""Model cards: what a model is, what it was trained on and under which terms, how well it does, where it fails.

Everything in a card comes from ``model.json``, the recipe, the export's own comparison and metrics files; nothing
names a folder of the machine that trained it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from export.checkpoints import DetectorSource, ExportError, PoseSource
from export.parity import Difference
from export.plans import PlanOptions
from service.skeletons import Skeleton
from training.recipe import DataSource

_RECIPES = Path(__file__).resolve().parent.parent / "training" / "recipes"
_ROOT = _RECIPES.parent.parent

# By the beginning of an annotation file's name: the source to cite, and the terms of labels and pictures.
_DATA_TERMS = {
    "coco": (
        "COCO 2017 (Lin et al., ECCV 2014)",
        "annotations CC BY 4.0; pictures under their photographers' Flickr licences, many of them non-commercial",
    ),
    "lspet": (
        "Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011)",
        "pictures under their photographers' Flickr licences, many of them non-commercial; cite the paper",
    ),
    "lsp": (
        "Leeds Sports Pose (Johnson and Everingham, BMVC 2010)",
        "pictures under their photographers' Flickr licences, many of them non-commercial; cite the paper",
    ),
    "rendered": ("this project's own rendered scenes", "Apache-2.0, as the project"),
}
# Fields of recipes that are paths.
_PATHS = ("annotations", "images", "init")
_UNKNOWN_TERMS = ("not known to this project", "see the data set's own terms")

_LIMITS_POSE = (
    "One person per crop: where two people overlap in a box, joints of the other one may be answered.",
    "Joints outside the crop are not found; a score says how sure the network is, and is not calibrated to be a "
    "probability.",
    "Left and right are confused most often in views from behind and for people upside down.",
    "Trained on photographs of sports and everyday scenes; not on infrared, fisheye, medical or overhead views.",
    "Small people (under about 60 pixels high) lose wrists, ankles and faces first.",
)
_LIMITS_DETECTOR = (
    "People only. Small ones (under about 30 pixels high in the letterboxed picture) are often missed.",
    "People who overlap almost wholly come out as one box: the final suppression keeps the better one.",
    "Trained on photographs; not on infrared, fisheye, medical or overhead views.",
)
_ETHICS = (
    "It finds bodies, not identities, and says nothing about who a person is. How well it does was not measured for "
    "separate groups of people (age, skin tone, body shape, disability); measure that before decisions about people "
    "hang on it."
)


@dataclass(frozen=True)
class Metrics:
    """Numbers from one metrics file; ``name`` is the file's, without folder and suffix."""

    name: str
    values: Mapping[str, Any]


def read_metrics(path: Path) -> Metrics:
    """Metrics printed by ``python -m training evaluate``: the last line of the file is one JSON object."""
    try:
        text = path.read_text(encoding="utf-8").strip()
        try:
            values = json.loads(text)
        except json.JSONDecodeError:
            values = json.loads(text.splitlines()[-1])
    except (OSError, json.JSONDecodeError, IndexError) as error:
        raise ExportError(f"{path}: no JSON object of metrics: {error}") from error
    if not isinstance(values, dict):
        raise ExportError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return Metrics(path.stem, values)


def pose_card(
    source: PoseSource, preset: Skeleton, name: str, options: PlanOptions,
    differences: Sequence[Difference], checked_on: str, metrics: Sequence[Metrics], failures: str | None = None,
) -> str:  # fmt: skip
    """Card of one pose ensemble (it covers the networks and parts it is made of).

    ``failures`` is the path of a sheet of failures, from the card's folder.
    """
    width, height = source.size
    network = source.recipes[0].network
    radii = ", ".join(f"{r.name} ({r.kind}, sigma {r.sigma:g} cells)" for r in source.radii)
    made_of = "one trunk with several heads" if len(source.networks) == 1 else "separate networks, one for each radius"
    lines = [
        f"# {name}: joints of one person ({preset.name})",
        "",
        f"{network.description}, {made_of}, "
        f"for {len(preset)} joints: {', '.join(preset.joints)}. Radii: {radii}; their maps are fused by a weighted "
        f"product and decoded inside the graph (refinement `{source.refinement}`, heatmap coordinates "
        f"`{source.convention}`).",
        "",
        "| tensor | type | shape |",
        "|---|---|---|",
        f"| `crops` in | uint8 RGB | [P, {height}, {width}, 3] |",
        f"| `fusion_weights` in | float32 | [P, {len(source.radii)}] |",
        f"| `keypoints` out | float32: x, y in crop pixels, score 0..1 | [P, {len(preset)}, 3] |",
        "",
    ]
    for story, recipe in zip(source.stories, source.recipes, strict=True):
        lines += _training("pose", story, recipe, source.data)
    return _finish(lines, source.data, options, name, differences, checked_on, metrics, _LIMITS_POSE, failures)


def detector_card(
    source: DetectorSource, options: PlanOptions,
    differences: Sequence[Difference], checked_on: str, metrics: Sequence[Metrics],
) -> str:  # fmt: skip
    """Card of the person detector."""
    side, count = source.side, source.recipe.network.proposals
    lines = [
        f"# {options.detector}: boxes of people",
        "",
        f"{source.recipe.network.description}. Boxes come before the final suppression.",
        "",
        "| tensor | type | shape |",
        "|---|---|---|",
        f"| `images` in | uint8 RGB, letterboxed | [N, {side}, {side}, 3] |",
        f"| `boxes` out | float32 x1 y1 x2 y2 in letterbox pixels | [N, {count}, 4] |",
        f"| `scores` out | float32 0..1, 0 for padding | [N, {count}] |",
        "",
        *_training("detector", source.story, source.recipe, source.data),
    ]
    return _finish(lines, source.data, options, options.detector, differences, checked_on, metrics, _LIMITS_DETECTOR)


def _finish(
    lines: list[str], data: Sequence[DataSource], options: PlanOptions, name: str,
    differences: Sequence[Difference], checked_on: str, metrics: Sequence[Metrics], limits: Sequence[str],
    failures: str | None = None,
) -> str:  # fmt: skip
    lines += ["## Data and its terms", "", "| data set | source | terms |", "|---|---|---|"]
    for stem in dict.fromkeys(source.annotations.stem for source in data):
        origin, terms = next((t for key, t in _DATA_TERMS.items() if stem.startswith(key)), _UNKNOWN_TERMS)
        lines.append(f"| `{stem}` | {origin} | {terms} |")
    lines += ["", "No picture of these data sets is part of the project. Whether weights trained on pictures under "
              "non-commercial licences may be used commercially is for the user to judge.", ""]  # fmt: skip
    lines += ["## Measured", ""]
    about = [entry for entry in metrics if _is_about(entry, name, options)]
    lines += _measured(about)
    if not about:
        lines += ["Not measured on its own yet; the numbers above are of people or pictures held out of training.", ""]
    lines += [
        "## Export",
        "",
        f"Weights are stored as {'float16' if options.precision == 'fp16-weights' else 'float32'}, the arithmetic is "
        f"float32. The exported models against the trained networks, on {checked_on}:",
        "",
        "| model | compared | values | median px | p99 px | p99 score |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{d.model}` | {d.what} | {d.count} | {d.median:.4f} | {d.p99:.4f} | {d.score:.5f} |"
            for d in differences
            if d.model in (name, f"{name}_flip")
        ),
        "",
        *_failures(about, failures),
        "## Limits",
        "",
        *(f"- {limit}" for limit in limits),
        f"- {_ETHICS}",
        "",
    ]
    return "\n".join(lines)


def _is_about(entry: Metrics, name: str, options: PlanOptions) -> bool:
    """Whether figures belong into the card of ``name``; those that name no model belong into every card."""
    model = entry.values.get("options", {}).get("model")
    if model is None:
        return True
    return entry.values.get("boxes") == "detector" if name == options.detector else bool(model == name)


def _measured(entries: Sequence[Metrics]) -> list[str]:
    """One table of what matters, then every figure of accuracy folded away."""
    rows = [row for entry in entries for row in _summary_rows(entry)]
    lines = []
    if rows:
        lines += [
            "| measured | on | boxes | joints AP | AP50 | boxes AP | AP50 | PCK@0.2 |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "Percent; ± is one standard deviation over pictures drawn anew (bootstrap): the 95 % interval is twice it.",
            "",
        ]
    for entry in entries:
        figures = [
            f"| {key} | {_number(value)} |"
            for key, value in _flat(entry.values.get("sets", entry.values))
            if isinstance(value, int | float) and not re.search(r"ms_per_picture|latency_ms", key)
        ]
        lines += [
            f"<details><summary>All figures of <code>{entry.name}</code></summary>", "",
            "| metric | value |", "|---|---|", *figures, "", "</details>", "",
        ]  # fmt: skip
    return lines


def _summary_rows(entry: Metrics) -> Iterator[str]:
    """A row for each data set of one evaluation; none where the file is of another kind."""
    asked = entry.values.get("options", {})
    for name, found in entry.values.get("sets", {}).items():
        joints, boxes, pck = (found.get(key) or {} for key in ("keypoints", "boxes", "pck"))
        cells = [
            f"`{entry.name}`" + (", flip" if asked.get("flip") else ""),
            f"`{name}`",
            str(entry.values.get("boxes", "")),
            *(_percent(part.get(key), (part.get("spread") or {}).get(key)) for part in (joints, boxes)
              for key in ("AP", "AP50")),
            _percent(pck.get("mean"), pck.get("spread")),
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


def _failures(entries: Sequence[Metrics], picture: str | None) -> list[str]:
    """What goes wrong with joints, by kind, and the sheet of the worst people."""
    found = {
        f"`{entry.name}`, `{name}`": figures["joint_errors"]
        for entry in entries
        for name, figures in entry.values.get("sets", {}).items()
        if figures.get("joint_errors")
    }
    lines = []
    if found:
        kinds = list(next(iter(found.values())))
        lines += [
            "| measured | " + " | ".join(kinds) + " |",
            "|---" * (len(kinds) + 1) + "|",
            *(
                "| " + " | ".join((name, *(_percent(shares[k]) for k in kinds))) + " |"
                for name, shares in found.items()
            ),
            "",
            "Labelled joints of people who were found, percent: good or nearly so (jitter), at another joint of the "
            "same person (inversion), at somebody else's (swap), at none (Ronchi and Perona, ICCV 2017).",
            "",
        ]
    if picture:
        lines += [f"![the people met worst: truth and answer]({picture})", ""]
    return ["## Known failures", "", *lines] if lines else []


def _percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _training(kind: str, story: Mapping[str, Any], recipe: BaseModel, data: Sequence[DataSource]) -> list[str]:
    """How one checkpoint came to be."""
    if imported := story.get("imported"):
        return [
            "## Weights",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {_number(v)} |" for key, v in _flat(imported)),
            "",
        ]
    facts = [
        ("command", f"`{_command(kind, recipe)}`"),
        ("commit", story.get("commit", "unknown")),
        ("hardware", story.get("hardware", "unknown")),
        ("duration", f"{story['hours']:.2f} h" if "hours" in story else "unknown"),
        ("finished", story.get("finished", "unknown")),
        ("parameters", f"{story['parameters']:,}" if "parameters" in story else "unknown"),
    ]
    facts += [(f"data, {key}", value) for key, value in _flat(story.get("data", {}))]
    facts += [(key, _number(value)) for key, value in _flat(story.get("metrics", {}))]
    facts += [(f"held out, {key}", _number(value)) for key, value in _flat(story.get("held_out", {}))]
    settings = yaml.safe_dump(_without_paths(recipe.model_dump(mode="json")), sort_keys=False, width=110)
    return [
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts),
        "",
        "<details><summary>Recipe</summary>",
        "",
        "```yaml",
        settings.strip(),
        "```",
        "",
        "</details>",
        "",
    ]


def _command(kind: str, recipe: BaseModel) -> str:
    """The command line that trains this recipe: the shipped recipe nearest to it, and what differs."""
    wanted = dict(_flat(_without_paths(recipe.model_dump(mode="json"))))
    best: tuple[int, str, list[str]] | None = None
    for path in sorted(_RECIPES.glob("*.yaml")):
        try:
            # Paths are compared by name, so any value does for the variable in them.
            raw = yaml.safe_load(path.read_text(encoding="utf-8").replace("${TRITONPOSE_DATA}", "data"))
            shipped = dict(_flat(_without_paths(type(recipe).model_validate(raw).model_dump(mode="json"))))
        except ValueError:  # a recipe of the other kind
            continue
        changed = [key for key in {**shipped, **wanted} if shipped.get(key) != wanted.get(key)]
        if best is None or len(changed) < best[0]:
            best = len(changed), str(path.relative_to(_ROOT)), changed
    command = f"python -m training {kind} --recipe"
    # A list's entry cannot be set by itself; with many differences the recipe below is the better guide.
    if best is None or best[0] > 6 or any(part.isdigit() for key in best[2] for part in key.split(".")):
        return f"{command} RECIPE --output RUN"
    sets = "".join(f" --set {key}={json.dumps(wanted.get(key))}" for key in best[2])
    return f"{command} {best[1]} --output RUN{sets}"


def _without_paths(value: Any) -> Any:
    """Data sets by name: folders belong to the machine that trained."""
    if isinstance(value, Mapping):
        return {
            key: Path(entry).stem if key in _PATHS and isinstance(entry, str) else _without_paths(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_paths(entry) for entry in value]
    return value


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested objects with dotted names; a list is one leaf, its values side by side."""
    if not isinstance(values, Mapping):
        yield prefix, ", ".join(map(str, values)) if isinstance(values, list) else values
        return
    for key, value in values.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
