"""Whole pictures of people with known joints, drawn from a seed.

Used by tests, load tests and the bench, so that all of them run without a data set, and to train on.
The same seed and options give the same picture, on one version of NumPy and OpenCV bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from service.scenes.backdrop import draw_backdrop
from service.scenes.body import Build, Vector
from service.scenes.figure import Figure, draw_figure
from service.scenes.layer import Layer, Picture, bytes_array
from service.scenes.look import Look
from service.scenes.objects import OCCLUDERS, draw_object, standing_box
from service.scenes.poses import POSE_WEIGHTS, POSES, draw_pose
from service.skeletons import UNION19, Skeleton

Rng = np.random.Generator
BACKGROUND = -1
# A person of whom less can be seen is placed anew: nobody would label that scrap.
_LEAST_VISIBLE, _LEAST_PIXELS = 0.2, 24
_ATTEMPTS = 12
# Each new attempt is a little smaller, so that crowds fit.
_SHRINK = 0.93


@dataclass(frozen=True)
class ScenePerson:
    """One drawn person.

    Attributes:
        keypoints: float64 [K, 3]: x, y in pixel-index coordinates (the centre of pixel i is i) and v: 2 visible,
            1 hidden by a nearer person, an object or the person's own body, 0 outside the picture (x, y then
            lie outside as well; COCO files get zeros).
        box: float64 [4], x1 y1 x2 y2 of the visible silhouette in edge coordinates (pixel i covers [i, i + 1]).
        area: visible pixels.
        visible: share of the silhouette inside the picture that nothing covers.
        pose: name of the pose, see POSES.
        mask: bool [H, W], the visible pixels.
    """

    keypoints: npt.NDArray[np.float64]
    box: npt.NDArray[np.float64]
    area: float
    visible: float
    pose: str
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A picture and its truth.

    Attributes:
        image: RGB uint8 [H, W, 3].
        people: from the farthest to the nearest.
        owner: int16 [H, W], what each pixel shows: the index of a person, -1 the background, -2 and below
            things that stand before someone.
        skeleton: the joints of ``keypoints``.
    """

    image: Picture
    people: tuple[ScenePerson, ...]
    owner: npt.NDArray[np.int16]
    skeleton: Skeleton


@dataclass(frozen=True)
class _Placed:
    """A layer at its depth; ``figure`` is None for a thing."""

    layer: Layer
    depth: float
    figure: Figure | None = None
    pose: str = ""


def render_scene(
    seed: int | Sequence[int],
    *,
    size: tuple[int, int] = (640, 480),
    people: int | tuple[int, int] = (1, 6),
    stature: tuple[float, float] = (0.3, 0.95),
    occluders: int | tuple[int, int] = (0, 2),
    poses: Sequence[str] | None = None,
    whole: bool = False,
    skeleton: Skeleton = UNION19,
) -> Scene:
    """Draw one picture.

    Args:
        seed: one number or several (``(dataset_seed, index)``).
        size: width, height in pixels, at least 16 each.
        people: how many, or the lowest and highest number. People of whom next to nothing would be seen are
            placed elsewhere, and a little smaller; where that does not help either they are left out.
        stature: lowest and highest height of a standing adult, as a share of the picture's height.
        occluders: how many things stand before people, or the range.
        poses: names out of POSES to draw from; by default all, everyday ones more often.
        whole: keep people inside the picture (where they fit), for tests that need every joint.
        skeleton: the joints wanted, all of them among UNION19's.

    Raises:
        ValueError: for options out of range, a joint or a pose that does not exist.
    """
    names, weights = _pose_choice(poses)
    if missing := [j for j in skeleton.joints if j not in UNION19.joints]:
        raise ValueError(f"joints that are not drawn: {missing}")
    if min(size) < 16:
        raise ValueError(f"a scene needs at least 16x16 pixels, got {size[0]}x{size[1]}")
    if not 0 < stature[0] <= stature[1]:
        raise ValueError(f"stature must be a positive range, got {stature}")
    rng = np.random.default_rng(seed)
    count = _count(people, rng)
    width, height = size
    horizon = height * rng.uniform(0.22, 0.55)
    elevation = float(rng.uniform(-3, 16))
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(0.3, 0.9), rng.uniform(0.4, 0.8)])
    light /= np.linalg.norm(light)
    picture = draw_backdrop(size, horizon, rng)

    eye_level = rng.uniform(0.6, 1.2)  # camera's height in statures: who stands farther stands higher in the picture
    placed: list[_Placed] = []
    for _ in range(count):
        for attempt in range(_ATTEMPTS):
            tall = height * float(np.exp(rng.uniform(*np.log(stature)))) * _SHRINK**attempt
            pose = draw_pose(rng, str(rng.choice(names, p=weights)), elevation)
            ground = horizon + eye_level * tall * rng.uniform(0.9, 1.1)
            if whole or rng.random() < 0.7:
                ground = min(ground, height * rng.uniform(0.88, 0.995))
            middle = rng.uniform(0.22, 0.78) if whole else rng.uniform(0.02, 0.98)
            figure = draw_figure(
                Build.random(rng),
                pose,
                Look.random(rng),
                stature=tall,
                foot=(middle * width, ground),
                light=light,
                size=size,
                rng=rng,
            )
            candidate = _Placed(figure.layer, tall * float(rng.uniform(0.95, 1.05)), figure, pose.name)
            if _fits(figure, size, whole) and _all_seen([*placed, candidate], size):
                placed.append(candidate)
                break
    figures = len(placed)
    for _ in range(_count(occluders, rng) if figures else 0):
        for _ in range(_ATTEMPTS):
            thing = _occluder(placed[int(rng.integers(figures))], size, rng)
            if _all_seen([*placed, thing], size):
                placed.append(thing)
                break
    placed.sort(key=lambda item: item.depth)

    owner = _owners(placed, size)
    for item in placed:
        if item.figure is not None:
            _shadow(picture, item.figure, rng)
        item.layer.lay_over(picture)
    found = [item for item in placed if item.figure is not None]
    truth = tuple(_person(index, item, placed, owner, skeleton) for index, item in enumerate(found))
    return Scene(_photograph(picture, rng), truth, owner, skeleton)


def _pose_choice(poses: Sequence[str] | None) -> tuple[list[str], Vector]:
    names = list(POSE_WEIGHTS if poses is None else poses)
    if unknown := [name for name in names if name not in POSES]:
        raise ValueError(f"no such poses: {unknown}; there are {sorted(POSES)}")
    weights = np.array([POSE_WEIGHTS[name] for name in names])
    return names, weights / weights.sum()


def _count(number: int | tuple[int, int], rng: Rng) -> int:
    low, high = (number, number) if isinstance(number, int) else number
    if not 0 <= low <= high:
        raise ValueError(f"not a number of things: {number}")
    return int(rng.integers(low, high + 1))


def _fits(figure: Figure, size: tuple[int, int], whole: bool) -> bool:
    """Whether enough of a person, or with ``whole`` every joint, is inside the picture."""
    points = np.stack([figure.points[joint] for joint in UNION19.joints])
    inside = ((points > -0.5) & (points < np.array(size) - 0.5)).all(1)
    return bool(inside.all()) if whole else int(inside.sum()) >= 5


def _owners(placed: Sequence[_Placed], size: tuple[int, int]) -> npt.NDArray[np.int16]:
    """What each pixel shows, things and people numbered in the order of ``placed`` (back to front)."""
    owner = np.full((size[1], size[0]), BACKGROUND, np.int16)
    person, thing = 0, BACKGROUND - 1
    for item in placed:
        owner[item.layer.window][item.layer.solid] = person if item.figure is not None else thing
        person, thing = (person + 1, thing) if item.figure is not None else (person, thing - 1)
    return owner


def _all_seen(placed: Sequence[_Placed], size: tuple[int, int]) -> bool:
    """Whether of every person enough stays visible."""
    ordered = sorted(placed, key=lambda item: item.depth)
    owner = _owners(ordered, size)
    seen = np.bincount(owner[owner >= 0], minlength=len(ordered))
    figures = [item for item in ordered if item.figure is not None]
    return all(
        seen[k] >= max(_LEAST_PIXELS, _LEAST_VISIBLE * np.count_nonzero(item.layer.solid))
        for k, item in enumerate(figures)
    )


def _occluder(target: _Placed, size: tuple[int, int], rng: Rng) -> _Placed:
    """A thing before someone: over the legs, or at a side."""
    kind = str(rng.choice(OCCLUDERS))
    rows, columns = target.layer.window
    tall = rows.stop - rows.start
    share = rng.uniform(0.25, 0.6) * (1.9 if kind in ("pole", "plant", "bush") else 1.0)
    middle = rng.uniform(columns.start, columns.stop)
    bottom = rows.stop + rng.uniform(0, 0.15) * tall
    layer = draw_object(kind, standing_box(kind, middle, bottom, tall * share, rng), size, rng)
    return _Placed(layer, target.depth * 1.001)


def _shadow(picture: Picture, figure: Figure, rng: Rng) -> None:
    """Darken the ground under a person, softly."""
    rows, columns = figure.layer.window
    width = columns.stop - columns.start
    if width < 6 or rows.stop >= picture.shape[0]:
        return
    tall = max(3, int(width * rng.uniform(0.1, 0.22)))
    y1, y2 = max(0, rows.stop - tall), min(picture.shape[0], rows.stop + tall // 2)
    view = picture[y1:y2, columns]
    soft = np.full(view.shape[:2], 255, np.uint8)
    cv2.ellipse(
        soft, (width // 2, rows.stop - tall // 4 - y1), (int(width * 0.44), max(1, tall // 3)), 0, 0, 360, 140, -1
    )
    spread = tall // 2 | 1
    view[:] = cv2.multiply(view, cv2.merge([cv2.blur(soft, (spread, spread))] * 3), scale=1 / 255)


def _person(
    index: int, item: _Placed, placed: Sequence[_Placed], owner: npt.NDArray[np.int16], skeleton: Skeleton
) -> ScenePerson:
    figure = item.figure
    assert figure is not None
    height, width = owner.shape
    mask = owner == index
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    nearer = _nearer_owners(item, placed)
    keypoints = np.zeros((len(skeleton), 3))
    for k, joint in enumerate(skeleton.joints):
        x, y = figure.points[joint]
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        visibility = 0
        if 0 <= column < width and 0 <= row < height:
            covered = int(owner[row, column]) in nearer or joint in figure.self_hidden
            visibility = 1 if covered else 2
        keypoints[k] = x, y, visibility
    area = float(np.count_nonzero(mask))
    return ScenePerson(keypoints, box, area, area / float(np.count_nonzero(item.layer.solid)), item.pose, mask)


def _nearer_owners(item: _Placed, placed: Sequence[_Placed]) -> set[int]:
    """Numbers in the owner map of all that is painted after ``item``."""
    person, thing, nearer, reached = 0, BACKGROUND - 1, set(), False
    for other in placed:
        if reached:
            nearer.add(person if other.figure is not None else thing)
        reached = reached or other is item
        person, thing = (person + 1, thing) if other.figure is not None else (person, thing - 1)
    return nearer


def _photograph(picture: Picture, rng: Rng) -> Picture:
    """What a camera adds: exposure, tint, some blur and grain."""
    if rng.random() < 0.5:
        picture = bytes_array(cv2.GaussianBlur(picture, (3, 3), float(rng.uniform(0.3, 0.9))))
    gain = rng.uniform(0.75, 1.2) * np.clip(rng.normal(1, 0.05, 3), 0.85, 1.15)
    gamma = rng.uniform(0.8, 1.25)
    levels = np.arange(256) / 255
    table = np.clip(255 * gain * levels[:, None] ** gamma, 0, 255).astype(np.uint8)
    exposed = cv2.LUT(picture, table[:, None, :])
    strength = int(rng.integers(1, 14))
    noise = np.frombuffer(rng.bytes(picture.shape[0] * picture.shape[1]), np.uint8).reshape(picture.shape[:2])
    grain = cv2.LUT(noise, np.linspace(0, strength, 256).astype(np.uint8))
    grainy = cv2.add(exposed, cv2.merge([grain] * 3))
    return bytes_array(cv2.subtract(grainy, np.full_like(picture, strength // 2)))
