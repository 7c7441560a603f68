"""``python -m deploy.triton``: Triton on loopback and the service on top of it, without docker (``make triton``)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.triton.installation import ENVIRONMENT, GPU_ENVIRONMENT, ROOT, TritonMissing, find_installation
from deploy.triton.server import Ports, TritonFailed, TritonServer
from deploy.triton.supervisor import Supervisor


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 then, 1 when one of the two cannot be started."""
    options = _parse()
    free = Ports.free()
    ports = Ports(
        options.triton_http or free.http, options.triton_grpc or free.grpc, options.triton_metrics or free.metrics
    )
    try:
        installation = find_installation(GPU_ENVIRONMENT if options.gpu else ENVIRONMENT)
        triton = TritonServer(
            options.repository, ports=ports, control=options.control, log=options.log, installation=installation
        )
        gateway = [sys.executable, "-m", "service", "serve", "--host", options.host, "--port", str(options.port)]
        variables = {
            "TRITONPOSE_ENGINE": "triton",
            "TRITONPOSE_TRITON_URL": triton.grpc_url,
            "TRITONPOSE_REPOSITORY": str(triton.repository),
        }
        return Supervisor(triton, gateway, variables).run()
    except (TritonMissing, TritonFailed, NotADirectoryError) as error:
        print(error, file=sys.stderr)
        return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.triton", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address of the service; Triton stays on loopback")
    parser.add_argument("--port", type=int, default=8000, help="port of the service")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="model repository")
    parser.add_argument("--gpu", action="store_true", help="the networks on the GPU: the environment triton-gpu")
    parser.add_argument("--triton-http", type=int, metavar="PORT", help="Triton's HTTP port; default: a free one")
    parser.add_argument("--triton-grpc", type=int, metavar="PORT", help="Triton's gRPC port; default: a free one")
    parser.add_argument("--triton-metrics", type=int, metavar="PORT", help="Triton's metrics port; default: a free one")
    parser.add_argument("--log", type=Path, help="file for Triton's log; default: one that goes when this ends")
    parser.add_argument(
        "--control", choices=("none", "poll", "explicit"), default="poll", help="how new model versions are taken up"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
