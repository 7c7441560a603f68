"""The plain FastAPI handler: a model loaded once, an ``UploadFile``, a ``def`` that FastAPI runs in its threads.

uvicorn loadtest.peers.fastapi_server:app --port 9001 --workers 1
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, UploadFile

from loadtest.peers.pipeline import PeerPipeline

app = FastAPI()
pipeline = PeerPipeline()


@app.post("/v1/pose")
def pose(image: UploadFile) -> dict[str, Any]:
    """Blocking work in a plain function: FastAPI's documentation leaves it to the thread pool."""
    return pipeline(image.file.read())
