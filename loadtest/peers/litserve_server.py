"""LitServe: an API of four verbs; its worker processes run it, its server reads and answers.

    python -m loadtest.peers.litserve_server PORT

LitServe reads the methods' annotations and wants them as types: no annotations as text in this file.
"""

import os
import sys
from typing import Any, cast

import litserve
from fastapi import Request

from loadtest.peers.pipeline import PeerPipeline


class PoseAPI(litserve.LitAPI):
    """One picture at a time: on a CPU a batch of pictures takes as long as its pictures."""

    def setup(self, device: str) -> None:
        """Once in each worker."""
        self.pipeline = PeerPipeline()

    def decode_request(self, request: Request) -> bytes:
        """The uploaded file: of a multipart request LitServe hands on the form."""
        form = cast(Any, request)
        return cast(bytes, form["image"].file.read())

    def predict(self, x: bytes) -> dict[str, Any]:
        """From bytes to the document."""
        return self.pipeline(x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """LitServe writes it as JSON."""
        return output


if __name__ == "__main__":
    workers = int(os.environ.get("PEER_WORKERS", "1"))
    api = PoseAPI(api_path="/v1/pose")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
