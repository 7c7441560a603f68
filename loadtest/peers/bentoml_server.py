"""BentoML: a service class whose method takes a file.

PEER_WORKERS=2 bentoml serve loadtest.peers.bentoml_server:Pose --port 9003
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from loadtest.peers.pipeline import PeerPipeline


@bentoml.service(workers=int(os.environ.get("PEER_WORKERS", "1")), traffic={"timeout": 60})
class Pose:
    """One pipeline in each worker; synchronous methods run in BentoML's threads."""

    def __init__(self) -> None:
        self.pipeline = PeerPipeline()

    @bentoml.api(route="/v1/pose")
    def pose(self, image: Annotated[Path, ContentType("image/jpeg")]) -> dict[str, Any]:
        """BentoML puts an uploaded file into a temporary one."""
        return self.pipeline(image.read_bytes())
