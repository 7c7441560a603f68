"""Make the README's pictures: rendered people, and what the committed models answer for them.

    .venv/dev/bin/python scripts/readme_pictures.py

Writes docs/images/people.jpg and docs/images/answer.png.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import cv2

from service.drawing import draw_people, encode_picture
from service.engine_choice import open_engine
from service.options import PoseOptions
from service.pipeline import PosePipeline
from service.scenes import render_scene
from service.settings import Settings
from service.steps import Picture

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
SEED = 48  # of sixty scenes the one whose people the first models find best


async def main() -> None:
    """Render, ask, draw."""
    scene = render_scene(SEED, people=3, stature=(0.6, 0.9), occluders=(0, 1), whole=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    people = FOLDER / "people.jpg"
    cv2.imwrite(str(people), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    settings = Settings()
    engine = open_engine(settings)
    await engine.start()
    pipeline = PosePipeline(engine, settings)
    try:
        answer = await pipeline.run([Picture(people.read_bytes(), 1)], PoseOptions(), keep_pixels=True)
    finally:
        pipeline.close()
        await engine.close()
    drawn = draw_people(answer.pictures[0], answer.pose.skeleton, answer.options.score_threshold or 0.0)
    (FOLDER / "answer.png").write_bytes(encode_picture(drawn, "image/png"))


if __name__ == "__main__":
    asyncio.run(main())
