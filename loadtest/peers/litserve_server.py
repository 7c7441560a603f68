"""LitServe: an API of four verbs; its worker processes run it, its server reads and answers.

python -m loadtest.peers.litserve_server PORT
"""

from __future__ import annotations

import os
import sys
from typing import Any

import litserve
from starlette.datastructures import FormData

from loadtest.peers.pipeline import PeerPipeline


class PoseAPI(litserve.LitAPI):
    """One picture at a time: on a CPU a batch of pictures takes as long as its pictures."""

    def setup(self, device: str) -> None:
        """Once in each worker."""
        self.pipeline = PeerPipeline()

    def decode_request(self, request: FormData) -> bytes:
        """The uploaded file."""
        data: bytes = request["image"].file.read()  # type: ignore[union-attr]
        return data

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
