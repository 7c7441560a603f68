"""People cut out along their outlines and pasted into other pictures (Ghiasi et al. 2021, "Simple Copy-Paste").

Two thousand pictures hold few backgrounds for each person; pasting makes new pairs of both, and people before people.
Whoever is covered keeps the box of what is still seen, or is ignored where too little is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from training.datasets.pictures import Boxes, Image, Picture

Mask = npt.NDArray[np.bool_]
# Pixels kept around an outline, so that its edge can be blurred.
_MARGIN = 3
# Deviation in canvas pixels of the blur of the edges: a hard edge would tell a network who was pasted.
_FEATHER = 0.8
# A person of fewer pixels than this is no person any more, only a smear.
_LEAST_HEIGHT = 20.0
# Cut-outs grow by no more: enlarged people are blurred, and blur would tell.
_LARGEST_GROWTH = 1.5


@dataclass(frozen=True)
class Cutout:
    """One person, cut out: RGB uint8 [h, w, 3] and its coverage uint8 [h, w], 255 inside of the outline."""

    image: Image
    alpha: Image


def cut_out(picture: Picture, person: int) -> Cutout | None:
    """Cut person number ``person`` out of a picture; None where the outline is unknown or the person too small."""
    polygons = picture.outlines[person] if picture.outlines else ()
    if not polygons:
        return None
    points = np.concatenate(polygons)
    height, width = picture.image.shape[:2]
    low = np.clip(np.floor(points.min(0)).astype(int) - _MARGIN, 0, [width, height])
    high = np.clip(np.ceil(points.max(0)).astype(int) + _MARGIN, 0, [width, height])
    if np.ptp(points[:, 1]) < _LEAST_HEIGHT or (high - low).min() <= 2 * _MARGIN:
        return None
    alpha = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    # Edge coordinates to OpenCV's pixel centres. One polygon at a time: fillPoly's parity would make holes of overlaps.
    for polygon in polygons:
        cv2.fillPoly(alpha, [np.round((polygon - low - 0.5) * 16).astype(np.int32)], (255,), shift=4)
    return Cutout(picture.image[low[1] : high[1], low[0] : high[0]], alpha)


def draw_cutout(donors: Sequence[Picture], rng: np.random.Generator) -> Cutout | None:
    """A random person among those of ``donors`` whose outline is known; None where there is none to be had."""
    choices = [(p, i) for p in donors for i, outline in enumerate(p.outlines) if outline]
    if not choices:
        return None
    picture, person = choices[int(rng.integers(len(choices)))]
    return cut_out(picture, person)


def paste_person(canvas: Image, cutout: Cutout, heights: tuple[float, float], rng: np.random.Generator) -> Mask | None:
    """Paste one person at a random place, in place.

    Args:
        canvas: RGB uint8 [S, S, 3].
        cutout: who.
        heights: range of the log-uniform height in canvas pixels; never much above the cut-out's own.
        rng: decides height, place and mirroring.

    Returns:
        what the person covers, bool [S, S]; None where hardly anything would be seen (the canvas is then as it was).
    """
    low, high = heights
    own = cutout.alpha.shape[0] - 2 * _MARGIN
    height = min(float(np.exp(rng.uniform(np.log(low), np.log(high)))), _LARGEST_GROWTH * own)
    flip = rng.random() < 0.5
    scale = height / own
    size = (max(1, round(cutout.alpha.shape[1] * scale)), max(1, round(cutout.alpha.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(cutout.image, size, interpolation=method)
    alpha = cv2.GaussianBlur(cv2.resize(cutout.alpha, size, interpolation=method), (0, 0), _FEATHER)
    if flip:
        image, alpha = image[:, ::-1], alpha[:, ::-1]
    side_y, side_x = canvas.shape[:2]
    # The middle lies in the canvas, so a quarter of the person at least is seen.
    left = int(rng.uniform(0, side_x)) - size[0] // 2
    top = int(rng.uniform(0, side_y)) - size[1] // 2
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + size[0], side_x), min(top + size[1], side_y)
    image, alpha = image[y1 - top : y2 - top, x1 - left : x2 - left], alpha[y1 - top : y2 - top, x1 - left : x2 - left]
    covered = np.zeros(canvas.shape[:2], np.bool_)
    covered[y1:y2, x1:x2] = alpha > 127
    if covered.sum() < _LEAST_HEIGHT:
        return None
    share = alpha[..., None].astype(np.float32) / 255
    canvas[y1:y2, x1:x2] = np.round(canvas[y1:y2, x1:x2] * (1 - share) + image * share).astype(np.uint8)
    return covered


def mask_box(mask: Mask) -> Boxes:
    """The box float32 [4] of the true pixels of a mask [H, W] that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def seen_boxes(boxes: Boxes, masks: Sequence[Mask], covered: Mask) -> tuple[Boxes, npt.NDArray[np.float64]]:
    """What is still seen of people over whom others were pasted.

    Args:
        boxes: [G, 4] on the canvas.
        masks: where each of them is, bool [S, S]; none at all where only the boxes are known.
        covered: bool [S, S], the pixels of who was pasted over them.

    Returns:
        boxes [G, 4] of what is seen (unchanged where nothing is seen), and the share 0..1 of each that is seen: of the
        mask, or of the whole box where there is no mask.
    """
    result, shares = boxes.copy(), np.ones(len(boxes))
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        left, top, right, bottom = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
        hidden = covered[top:bottom, left:right]
        if not hidden.any():
            continue
        own = masks[row][top:bottom, left:right] if masks else np.ones_like(hidden)
        seen = own & ~hidden
        shares[row] = seen.sum() / max(1, own.sum())
        if not seen.any():
            continue
        inner = mask_box(seen)
        # An edge moves only where all along it was covered: elsewhere the box has its fraction of a pixel.
        moved = inner + np.array([left, top, left, top], np.float32)
        outer = mask_box(own)
        result[row] = np.where(inner == outer, boxes[row], moved)
    return result, shares
