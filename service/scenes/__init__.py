"""Rendered scenes: pictures of people with known joints, from a seed (see :func:`render_scene`)."""

from service.scenes.coco import coco_category, scene_to_coco, write_coco
from service.scenes.scene import Scene, ScenePerson, render_scene

__all__ = ["Scene", "ScenePerson", "coco_category", "render_scene", "scene_to_coco", "write_coco"]
