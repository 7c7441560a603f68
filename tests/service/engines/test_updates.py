"""New models in a running engine: taken over whole or refused whole, and no request ever sees half of each."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from service.engines.base import Models
from service.engines.embedded import EmbeddedEngine
from service.errors import EngineUnavailable, ModelNotFound, Overloaded
from tests.service.engines.conftest import Start
from tests.service.engines.repositories import FLOAT, OUT, ROW, Repository, rows, turning

PERIOD = 0.05
TWO = "version_policy { latest { num_versions: 2 } }\n"


def version(repository: Repository, name: str, number: int, factor: float) -> Path:
    """Put a version beside those that are there, as a rename does: at once. Multiplies by ``factor``."""
    made = Repository(repository.root.parent / "made")
    made.affine(name, factor)
    (repository.root / name).mkdir(parents=True, exist_ok=True)
    return (made.root / name / "1").rename(repository.root / name / str(number))


def parameter(value: str) -> str:
    return f'parameters {{ key: "threshold" value {{ string_value: "{value}" }} }}\n'


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.01)


async def answer(models: Models, name: str = "m") -> float:
    return float((await models.infer(name, {"x": np.ones((1, 3), np.float32)}))["y"][0, 0])


async def test_a_new_version_answers_without_a_restart(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra=TWO)
    engine = await start(reload_seconds=PERIOD)
    assert await answer(engine) == 2
    version(repository, "m", 2, 3)
    await until(lambda: engine.updates["taken"] == 1)
    assert await answer(engine) == 3
    assert (await engine.metadata("m")).versions == (1, 2)
    assert engine.versions() == {"m": 2}
    assert engine.statistics()["m"].requests == 2, "counters do not begin anew"


async def test_who_holds_the_old_models_gets_their_answers_and_then_they_are_freed(
    repository: Repository, start: Start
) -> None:
    repository.affine("m", 2, extra=TWO + parameter("0.1"))
    engine = await start()
    old = weakref.ref(engine.networks["m"])
    with engine.hold() as held:
        version(repository, "m", 2, 3)
        config = repository.root / "m" / "config.pbtxt"
        config.write_text(config.read_text().replace("0.1", "0.9"))
        assert await engine.update()
        assert (await answer(held), await answer(engine)) == (2, 3)
        assert (await held.metadata("m")).parameters == {"threshold": "0.1"}
        assert (await engine.metadata("m")).parameters == {"threshold": "0.9"}
        assert old() is not None
    del held
    await asyncio.sleep(0.05)
    gc.collect()
    assert old() is None, "the old session keeps its memory"


async def test_a_request_that_runs_ends_on_the_old_version(repository: Repository, start: Start) -> None:
    repository.slow()
    repository.affine("m", 2, extra=TWO)
    engine = await start(concurrent_runs=2)
    running = asyncio.ensure_future(engine.infer("slow", turning(300_000)))
    await asyncio.sleep(0.02)
    config = repository.root / "slow" / "config.pbtxt"
    config.write_text(config.read_text() + parameter("1"))  # the network is loaded anew
    assert await engine.update()
    assert (await running)["y"].shape == (1, 64)


async def test_networks_that_did_not_change_are_not_loaded_again(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra=TWO)
    repository.affine("other", 5, extra=TWO)
    engine = await start()
    other, m = engine.networks["other"], engine.networks["m"]
    version(repository, "m", 2, 3)
    await engine.update()
    assert engine.networks["other"] is other
    assert engine.networks["m"] is not m


async def test_a_broken_version_is_refused_once_with_its_reason(
    repository: Repository, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    repository.affine("m", 2, extra=TWO)
    engine = await start(reload_seconds=PERIOD)
    place = version(repository, "m", 2, 3)
    whole = (place / "model.onnx").read_bytes()
    shutil.rmtree(place)
    place.mkdir()
    (place / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.ERROR):
        await until(lambda: engine.refused is not None)
        await asyncio.sleep(10 * PERIOD)
    assert engine.updates == {"refused": 1, "taken": 0}, "it is not tried again and again"
    assert "m/2/model.onnx: ONNX Runtime cannot load it" in (engine.refused or "")
    assert [r.message for r in caplog.records] == [
        f"the models in {repository.root} are refused, the old ones go on: {engine.refused}"
    ]
    assert await answer(engine) == 2
    assert await engine.ready()
    (place / "model.onnx").write_bytes(whole)
    await until(lambda: engine.updates["taken"] == 1)
    assert engine.refused is None
    assert await answer(engine) == 3


async def test_removing_what_was_refused_ends_the_refusal(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra=TWO)
    engine = await start(reload_seconds=PERIOD)
    (repository.root / "m" / "2").mkdir()
    await until(lambda: engine.refused is not None)
    assert "m/2/model.onnx is missing" in (engine.refused or "")
    (repository.root / "m" / "2").rmdir()
    await until(lambda: engine.refused is None)
    assert engine.updates == {"refused": 1, "taken": 0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: (root / "m/config.pbtxt").write_text("max_batch_size: many"), "many"),
        (lambda root: (root / "m/config.pbtxt").write_text(
            (root / "m/config.pbtxt").read_text().replace("dims: [3]", "dims: [4]")), r"m.*[-1, 4]"),
        (lambda root: shutil.rmtree(root / "m"), "names the model 'm', which is not in the repository"),
        (lambda root: shutil.rmtree(root), "is not a folder"),
    ],
)  # fmt: skip
async def test_a_repository_that_cannot_be_served_is_refused_as_a_whole(
    repository: Repository, start: Start, change: Callable[[Path], object], reason: str
) -> None:
    repository.affine("m", 2, extra=TWO)
    repository.ensemble("e", [("m", {"x": "x"}, {"y": "y"})], ROW, OUT)
    engine = await start()
    change(repository.root)
    assert await engine.update()
    assert reason.replace("m.*", "") in (engine.refused or "")
    assert await answer(engine, "e") == 2


async def test_a_file_that_is_still_being_written_is_not_read(repository: Repository, start: Start) -> None:
    """As `cp` writes it: the folder is there first, then a file that grows."""
    repository.affine("m", 2, extra=TWO)
    engine = await start(reload_seconds=4 * PERIOD)
    whole = version(repository, "m", 9, 3)
    data = (whole / "model.onnx").read_bytes()
    shutil.rmtree(whole)
    target = repository.root / "m" / "2"
    target.mkdir()
    with (target / "model.onnx").open("wb") as out:
        for byte in range(0, len(data), 1 + len(data) // 20):
            out.write(data[byte : byte + 1 + len(data) // 20])
            out.flush()
            await asyncio.sleep(PERIOD)
    await until(lambda: engine.updates["taken"] == 1)
    assert engine.updates == {"refused": 0, "taken": 1}
    assert await answer(engine) == 3


async def test_an_ensemble_changes_with_its_config_and_not_with_the_first_of_its_parts(
    repository: Repository, start: Start
) -> None:
    """Parts of an export arrive one after the other: what is served meanwhile is the old ones together."""
    for name in ("a", "b"):
        repository.affine(name, 2, extra=TWO)
    path = repository.ensemble("e", [("a", {"x": "x"}, {"y": "h"}), ("b", {"x": "h"}, {"y": "y"})], ROW, OUT)
    path.write_text(path.read_text().replace("model_version: -1", "model_version: 1"))
    engine = await start()
    for name, expected in (("a", 4), ("b", 4)):
        version(repository, name, 2, 10)
        await engine.update()
        assert await answer(engine, name) == 10
        assert await answer(engine, "e") == expected
    (repository.root / "e" / "2").mkdir()
    path.write_text(path.read_text().replace("model_version: 1", "model_version: 2"))
    await engine.update()
    assert await answer(engine, "e") == 100
    assert (await engine.metadata("e")).versions == (2,)


async def test_new_models_have_to_pass_the_trial(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra=TWO)
    engine = await start()

    async def trial(models: Models) -> None:
        if await answer(models) == 3:
            raise ModelNotFound("it answers 3")

    engine.trial = trial
    place = version(repository, "m", 2, 3)
    await engine.update()
    assert (engine.refused, await answer(engine)) == ("it answers 3", 2)
    assert list(engine.networks) == ["m"]
    shutil.rmtree(place)
    version(repository, "m", 2, 4)
    await engine.update()
    assert (engine.refused, await answer(engine)) == (None, 4)


async def test_a_trial_without_room_is_made_again(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra=TWO)
    engine = await start(reload_seconds=PERIOD)
    left = 2

    async def trial(models: Models) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Overloaded("512 requests wait already")

    engine.trial = trial
    version(repository, "m", 2, 3)
    await until(lambda: engine.updates["taken"] == 1)
    assert engine.updates["refused"] == 0


async def test_models_come_and_go(repository: Repository, start: Start) -> None:
    repository.affine("m", 2)
    repository.affine("n", 7)
    engine = await start()
    shutil.rmtree(repository.root / "n")
    repository.affine("new", 5)
    with engine.hold() as held:
        await engine.update()
        assert await engine.models() == ["m", "new"]
        assert await answer(held, "n") == 7
        with pytest.raises(ModelNotFound):
            await engine.infer("n", {"x": rows(1)})
    assert await answer(engine, "new") == 5


async def test_nothing_is_noticed_when_told_not_to_look(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra=TWO)
    engine = await start(reload_seconds=0)
    version(repository, "m", 2, 3)
    await asyncio.sleep(0.3)
    assert await answer(engine) == 2


async def test_closing_in_the_middle_of_an_update(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra=TWO)
    engine = await start(reload_seconds=PERIOD)
    begun = asyncio.Event()

    async def trial(models: Models) -> None:
        begun.set()
        await asyncio.sleep(60)

    engine.trial = trial
    version(repository, "m", 2, 3)
    await asyncio.wait_for(begun.wait(), 20)
    await asyncio.wait_for(engine.close(), 20)
    with pytest.raises(EngineUnavailable, match="closed"):
        await answer(engine)


async def test_every_answer_under_load_is_of_one_version(repository: Repository, start: Start) -> None:
    """e = b(a(x)) with equal factors: 4, 9, 16, 25 are answers, 6 or 12 would be a mixture."""
    for name in ("a", "b"):
        repository.affine(name, 2, extra=TWO + "dynamic_batching { }\n")
    path = repository.ensemble("e", [("a", {"x": "x"}, {"y": "h"}), ("b", {"x": "h"}, {"y": "y"})], ROW, OUT)
    engine = await start(concurrent_runs=2, reload_seconds=0.02)
    seen: list[float] = []
    stop = False

    async def caller() -> None:
        while not stop:
            seen.append(await answer(engine, "e"))

    callers = [asyncio.ensure_future(caller()) for _ in range(8)]
    for number in (2, 3, 4):
        for name in ("a", "b"):
            version(repository, name, number, number + 1)
        path.write_text(path.read_text() + "# another\n")
        await until(lambda: engine.updates["taken"] >= number - 1 and seen[-1] == (number + 1) ** 2)  # noqa: B023
    stop = True
    await asyncio.gather(*callers)
    assert set(seen) == {4, 9, 16, 25}
    assert engine.updates["refused"] == 0


async def test_warm_up_runs_the_configs_samples(repository: Repository, start: Start) -> None:
    """A network that fails on four rows is found before it answers, when the config says that four are in use."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 9])
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    sample = 'name: "s" batch_size: {} inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: [3] zero_data: true }} }}'
    text = 'platform: "onnxruntime_onnx"\nmodel_warmup {{ ' + sample + " }}\n"
    network = (nodes, ROW, {"y": (FLOAT, [9])})
    repository.network("m", *network, initializers=[shape], extra=text.format(4))
    with pytest.raises(EngineUnavailable, match=r"does not run on its warm-up sample \(s\)"):
        await start()
    repository.affine("m", 2, extra="model_warmup { " + sample.format(4) + " }\n")
    engine = await start(cpu_rows=2)
    assert isinstance(engine, EmbeddedEngine)
    assert engine.networks["m"].config.warm_up[0].rows == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("batch_size: 4", "batch_size: 9"), "batch_size 9, the most is 8"),
        (('key: "x"', 'key: "z"'), r"inputs \['z'\], the model takes \['x'\]"),
        (("dims: [3] zero", "dims: [4] zero"), r"TYPE_FP32 \[4\], the model takes float32 \[3\]"),
        (("TYPE_FP32 dims: [3] zero", "TYPE_INT8 dims: [3] zero"), "TYPE_INT8"),
    ],
)
async def test_a_warm_up_that_does_not_fit(
    repository: Repository, start: Start, wrong: tuple[str, str], said: str
) -> None:
    sample = 'name: "s" batch_size: 4 inputs { key: "x" value { data_type: TYPE_FP32 dims: [3] zero_data: true } }'
    path = repository.affine("m", 2, extra=f"model_warmup {{ {sample} }}\n")
    path.write_text(path.read_text().replace(*wrong))
    with pytest.raises(EngineUnavailable, match=rf"m/config\.pbtxt: model_warmup 's'.*{said}"):
        await start()
