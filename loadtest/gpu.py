"""``python -m loadtest.gpu``: what the wheel's Triton reaches on an NVIDIA GPU, as one table.

For 1, 5 and 20 people in a picture and each number of requests at a time: pictures and people a second, p50 and p99,
and the share of the time in which the GPU is at work; through the gateway, and for the same tensors by Triton alone.
Every picture is posed with exactly so many people: the detector's best boxes, whatever their scores, none suppressed.
So it measures the work and says nothing of the answers; that the GPU's are the CPU's is looked at before, with the
usual thresholds.

Without a GPU, its driver or the environment ``triton-gpu`` it says what is missing and ends with 2. The last line is
one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from deploy.triton.installation import BACKENDS, GPU_ENVIRONMENT, ROOT, TritonMissing, find_installation
from deploy.triton.server import TritonServer
from loadtest.agreement import disagreement
from loadtest.closed_loop import ClosedLoop, Outcome
from loadtest.nvidia import Gpu, NoGpu, Utilisation, find_gpus
from loadtest.pictures import LoadPicture, rendered_pictures
from loadtest.server import ServiceProcess
from loadtest.triton_alone import TritonAlone, record
from service.client import PoseClient

# A session of the back end's own making, by its very code: ONNX Runtime's version, its CUDA, and why not on the GPU.
_PROBE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import onnxruntime
from devices import cuda_options, open_session
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
_, reason = open_session(Path(sys.argv[2]), options, int(sys.argv[3]), cuda_options({}))
cuda = getattr(onnxruntime, "cuda_version", "")
print(json.dumps({"onnxruntime": onnxruntime.__version__, "cuda": cuda, "reason": reason}))
"""
_PROBE_SECONDS = 300
_HEADINGS = ("people", "through", "at a time", "images/s", "people/s", "p50 ms", "p99 ms", "GPU %")


@dataclass(frozen=True)
class Setup:
    """What is measured on."""

    gpus: list[Gpu]
    onnxruntime: str
    cuda: str


@dataclass(frozen=True)
class Row:
    """One line of the table; ``share`` is the GPU's in per cent, None where the board does not tell."""

    people: int
    through: str
    concurrency: int
    outcome: Outcome
    share: float | None

    def as_json(self) -> dict[str, Any]:
        """The figures, None for those that too few answers tell."""
        latencies = self.outcome.latencies
        p50, p99 = (float(np.percentile(latencies, q)) * 1000 if latencies else None for q in (50, 99))
        return {
            "people": self.people,
            "through": self.through,
            "concurrency": self.concurrency,
            "images_per_second": round(self.outcome.rate, 2),
            "people_per_second": round(self.outcome.rate * self.people, 2),
            "p50_ms": None if p50 is None else round(p50, 1),
            "p99_ms": None if p99 is None else round(p99, 1),
            "gpu_share": None if self.share is None else round(self.share, 1),
        }


class CountedLoop(ClosedLoop):
    """Asks for so many people that the last ones are no people: only their number can be checked."""

    def _check(self, index: int, status: int, body: bytes) -> str | None:
        if status != 200:
            return super()._check(index, status, body)
        wanted, given = (len(answer["annotations"]) for answer in (self._expected[index], json.loads(body)))
        return None if wanted == given else f"expected {wanted} people, got {given}"


def look_around(repository: Path, environment: Path, device: int) -> tuple[Setup | None, list[str]]:
    """What there is to measure on, or everything that is missing, each with the way to it."""
    missing: list[str] = []
    gpus: list[Gpu] = []
    try:
        gpus = find_gpus()
        if device >= len(gpus):
            missing.append(f"no GPU {device}: there are {len(gpus)}")
    except NoGpu as error:
        missing.append(str(error))
    graph = min(repository.glob("*/*/model.onnx"), default=None, key=lambda path: path.stat().st_size)
    if graph is None:
        missing.append(f"no network: {repository} holds no MODEL/VERSION/model.onnx")
    try:
        find_installation(environment)
    except TritonMissing as error:
        missing.append(str(error))
        return None, missing
    if graph is None:
        return None, missing
    python, back_end = environment / "bin" / "python", BACKENDS / "onnxruntime"
    command = [str(python), "-I", "-c", _PROBE, str(back_end), str(graph), str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PROBE_SECONDS)
    if done.returncode:
        missing.append(f"ONNX Runtime of {environment} does not run: {done.stderr.strip()[-500:]}")
        return None, missing
    told = json.loads(done.stdout.splitlines()[-1])
    if told["reason"] is not None:
        missing.append(f"no CUDA in ONNX Runtime of {environment}: {told['reason']}")
    return (None if missing else Setup(gpus, told["onnxruntime"], told["cuda"])), missing


def measure(
    triton: TritonServer,
    people: Sequence[int],
    concurrency: Sequence[int],
    *,
    seconds: float,
    pictures: int,
    device: int = 0,
    workers: int = 1,
) -> tuple[list[Row], int]:
    """All rows over a Triton that runs, and how many of the pictures it answers as the embedded engine on the CPU does.

    Raises RuntimeError with the first few wrong answers, if there are any.
    """
    rows: list[Row] = []
    posted = {number: rendered_pictures(pictures, number, size=(1280, 960)) for number in people}
    settings = {
        "TRITONPOSE_ENGINE": "triton",
        "TRITONPOSE_TRITON_URL": triton.grpc_url,
        "TRITONPOSE_MAX_RUNNING": str(max(concurrency)),
        "TRITONPOSE_TRITON_CONCURRENCY": str(max(32, 2 * max(concurrency))),
    }
    program = ("service", "serve", "--host", "127.0.0.1", "--workers", str(workers))
    with ServiceProcess(settings, program=program, start_seconds=180) as service:
        same = _same_as_on_the_cpu(triton.repository, service.url, [one for many in posted.values() for one in many])
        for number, asked in posted.items():
            options: dict[str, Any] = {"max_people": str(number), "box_threshold": "0", "nms_iou": "1", "nms_oks": "1"}
            with PoseClient(service.url) as client:
                expected = [client.pose(picture.data, **options) for picture in asked]
            if short := [len(one["annotations"]) for one in expected if len(one["annotations"]) != number]:
                raise RuntimeError(f"{short[0]} people instead of {number}: the detector has no more boxes")
            loop = CountedLoop(service.url, asked, expected, options=options)
            recording = record(triton.grpc_url, [picture.data for picture in asked], options)
            with TritonAlone(triton.grpc_url, recording) as alone:
                for together in concurrency:
                    for through, load in (("gateway", loop), ("Triton alone", alone)):
                        with Utilisation(device) as utilisation:
                            outcome = load.run(together, seconds)
                        if through == "Triton alone":  # other company in a batch, other rounding of what is nobody
                            outcome.failures = [text for text in outcome.failures if " differs by " not in text]
                        if outcome.failures:
                            raise RuntimeError(f"{through}: {'; '.join(outcome.failures[:3])}")
                        rows.append(Row(number, through, together, outcome, utilisation.share))
    return rows, same


def _same_as_on_the_cpu(repository: Path, url: str, pictures: Sequence[LoadPicture]) -> int:
    settings = {"TRITONPOSE_ENGINE": "embedded", "TRITONPOSE_REPOSITORY": str(repository)}
    with ServiceProcess(settings, start_seconds=180) as embedded:
        with PoseClient(embedded.url) as cpu, PoseClient(url) as gpu:
            return sum(disagreement(cpu.pose(one.data), gpu.pose(one.data)) is None for one in pictures)


def table(rows: Sequence[Row]) -> str:
    """The figures in Markdown."""
    lines = [f"| {' | '.join(_HEADINGS)} |", f"|{'---|' * len(_HEADINGS)}"]
    for row in rows:
        cells = ["" if value is None else str(value) for value in row.as_json().values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def server_version(triton: TritonServer) -> str:
    """Of the tritonserver, by its own word."""
    with urllib.request.urlopen(f"http://{triton.http_url}/v2", timeout=10) as response:
        return str(json.load(response)["version"])


def main(
    repository: Annotated[Path, typer.Option(help="Model repository.")] = ROOT / "model_repository",
    environment: Annotated[Path, typer.Option(help="Environment with Triton and onnxruntime-gpu.")] = GPU_ENVIRONMENT,
    device: Annotated[int, typer.Option(min=0, help="The GPU whose share is measured; models take all there are.")] = 0,
    people: Annotated[list[int], typer.Option(min=1, help="People in a picture; several times.")] = [1, 5, 20],  # noqa: B006
    concurrency: Annotated[list[int], typer.Option(min=1, help="Requests in flight; several times.")] = [1, 16],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0.2, help="Length of a round.")] = 10.0,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the gateway.")] = 1,
) -> None:
    """Measure the service on the wheel's Triton on a GPU, or say what is missing for that."""
    console = Console(stderr=True)
    setup, missing = look_around(repository, environment, device)
    if setup is None:
        for what in missing:
            console.print(f"missing: {what}", highlight=False, soft_wrap=True, markup=False)
        print(json.dumps({"missing": missing}))
        raise typer.Exit(2)
    with contextlib.ExitStack() as stack:
        triton = stack.enter_context(TritonServer(repository, installation=find_installation(environment)))
        if "on the CPU instead of GPU" in (log := triton.log.read_text(errors="replace")):
            reason = next(line for line in log.splitlines() if "on the CPU instead of GPU" in line)
            raise RuntimeError(f"a model is not on the GPU: {reason}")
        version = server_version(triton)
        rows, same = measure(
            triton, people, concurrency, seconds=seconds, pictures=pictures, device=device, workers=workers
        )
    gpu = setup.gpus[device]
    on = f"{gpu.name} ({gpu.memory_mib} MiB, compute capability {gpu.capability}), driver {gpu.driver}"
    on += f", tritonserver {version}, ONNX Runtime {setup.onnxruntime} with CUDA {setup.cuda}"
    print(f"{on}; {workers} gateway process{'es' if workers > 1 else ''}, pictures of 1280x960")
    print(f"answered as by the embedded engine on the CPU: {same} of {pictures * len(people)} pictures\n")
    print(table(rows))
    summary = {"on": on, "same_as_cpu": same, "workers": workers, "rows": [row.as_json() for row in rows]}
    print(json.dumps(summary))


if __name__ == "__main__":
    typer.run(main)
