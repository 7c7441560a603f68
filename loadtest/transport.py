"""What shared memory saves between the service and a Triton server of the same machine.

    python -m loadtest.transport

Starts a tritonserver with one model that does next to nothing with the crops of 1, 5 and 20 people, and calls it
through the Triton engine by turns with the crops in gRPC messages and in shared memory. Prints a table of medians:
time of a call, processor time of the client's process, processor time of the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from deploy.triton.server import TritonServer
from service.engines.triton import TritonEngine, TritonSettings

_PEOPLE = (1, 5, 20)
_CROP = (256, 192, 3)
_CALLS_OF_A_BLOCK = 20
_CONFIG = """name: "corner"
platform: "onnxruntime_onnx"
max_batch_size: 32
input { name: "crops" data_type: TYPE_UINT8 dims: [256, 192, 3] }
output { name: "corner" data_type: TYPE_UINT8 dims: [1, 1, 3] }
instance_group { count: 1 kind: KIND_CPU }
"""


def write_model(repository: Path) -> None:
    """A model that answers the first pixel of each crop."""
    graph = helper.make_graph(
        [helper.make_node("Slice", ["crops", "first", "last", "axes"], ["corner"])],
        "corner",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["P", *_CROP])],
        [helper.make_tensor_value_info("corner", TensorProto.UINT8, ["P", 1, 1, 3])],
        [
            helper.make_tensor("first", TensorProto.INT64, [2], [0, 0]),
            helper.make_tensor("last", TensorProto.INT64, [2], [1, 1]),
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    folder = repository / "corner" / "1"
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    (folder.parent / "config.pbtxt").write_text(_CONFIG)


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used, of all its threads (Linux; in steps of 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: TritonServer, blocks: int) -> None:
    """Call by turns and print the table."""
    engines = {
        "gRPC": TritonEngine(server.grpc_url, TritonSettings(shared_memory="off")),
        "shared memory": TritonEngine(server.grpc_url, TritonSettings(shared_memory="on")),
    }
    assert server.pid is not None
    for engine in engines.values():
        await engine.start()
    print("| people | MB | way | call, ms (p50) | client's processor, ms | server's processor, ms |")
    print("|---|---|---|---|---|---|")
    for people in _PEOPLE:
        crops = np.random.default_rng(people).integers(0, 256, (people, *_CROP), np.uint8)
        calls: dict[str, list[float]] = defaultdict(list)
        client: dict[str, float] = defaultdict(float)
        server_seconds: dict[str, float] = defaultdict(float)
        for block in range(-1, blocks):  # the first one warms up
            for way, engine in engines.items():
                began, server_began = time.process_time(), processor_seconds(server.pid)
                for _ in range(_CALLS_OF_A_BLOCK):
                    asked = time.perf_counter()
                    outputs = await engine.infer("corner", {"crops": crops})
                    if block >= 0:
                        calls[way].append(time.perf_counter() - asked)
                    assert (outputs["corner"][:, 0, 0] == crops[:, 0, 0]).all()
                if block >= 0:
                    client[way] += time.process_time() - began
                    server_seconds[way] += processor_seconds(server.pid) - server_began
        for way in engines:
            number = blocks * _CALLS_OF_A_BLOCK
            figures = (statistics.median(calls[way]), client[way] / number, server_seconds[way] / number)
            shown = " | ".join(f"{seconds * 1e3:.2f}" for seconds in figures)
            print(f"| {people} | {crops.nbytes / 1e6:.2f} | {way} | {shown} |", flush=True)
    assert engines["shared memory"].transport.shared_memory, "the server refused shared memory"
    for engine in engines.values():
        await engine.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=15, help=f"blocks of {_CALLS_OF_A_BLOCK} calls each way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        with TritonServer(Path(folder)) as server:
            asyncio.run(measure(server, arguments.blocks))


if __name__ == "__main__":
    main()
