"""If these failed, a measurement would not be of what is served, or could not be read by people and scripts."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import uvicorn
from pycocotools.coco import COCO
from rich.console import Console
from typer.testing import CliRunner

from service.app import create_app
from service.engines.fake import FakeEngine
from service.settings import Settings
from service.skeletons import LSP14, make_skeleton
from tests.service.marked_people import Card, card_engine, encode, paint
from training.__main__ import app as training_app
from training.answers import EvaluationError, InProcess, OverHttp
from training.datasets.coco import read_coco
from training.evaluate import EvaluationRecipe, evaluate, limited, summarize
from training.evaluation_report import draw_worst, print_tables, save_results
from training.recipe import read_recipe

# The fake model's joints, in another order than the data set's.
MODEL = make_skeleton("card3", ("right_hip", "left_shoulder", "left_wrist"), ())
DATA_JOINTS = ("left_shoulder", "right_hip", "left_wrist")
CARDS = (
    (Card(30, 40, 60, 120, 0.9), Card(180, 60, 72, 144, 0.8)),
    (Card(100, 30, 84, 168, 0.7),),
    (Card(20, 20, 48, 112, 0.6), Card(120, 70, 60, 120, 0.5), Card(230, 90, 64, 128, 0.15)),
    (),
)


def engine() -> FakeEngine:
    return card_engine(skeleton=MODEL.to_json())


def write_cards(folder: Path, **changes: Any) -> Path:
    """A data set of painted cards; ``changes`` go into every annotation. Returns the annotation file."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    images, annotations = [], []
    for number, cards in enumerate(CARDS, start=1):
        name = f"cards{number}.png"
        (pictures / name).write_bytes(encode(paint(cards)))
        images.append({"id": 10 * number, "file_name": name, "width": 320, "height": 240})
        for card in cards:
            by_name = dict(zip(MODEL.joints, card.points.tolist(), strict=True))
            flat = [value for joint in DATA_JOINTS for value in (*by_name[joint], 2)]
            annotation = {
                "id": len(annotations), "image_id": 10 * number, "category_id": 1, "keypoints": flat,
                "num_keypoints": 3, "bbox": [card.x, card.y, card.width, card.height],
                "area": card.width * card.height, "iscrowd": 0,
            }  # fmt: skip
            annotations.append({**annotation, **changes})
    category = {"id": 1, "name": "person", "keypoints": list(DATA_JOINTS), "skeleton": [[1, 2]]}
    path = folder / "cards.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return path


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    return write_cards(tmp_path)


def recipe(cards: Path, **fields: Any) -> EvaluationRecipe:
    source = {"annotations": cards, "images": cards.parent / "pictures"}
    options = {"box_threshold": 0.05, **fields.pop("options", {})}
    all_labelled = fields.pop("all_labelled", True)
    return EvaluationRecipe.model_validate(
        {"data": [{**source, "all_labelled": all_labelled}], "resamples": 20, "options": options, **fields}
    )


QUIET = Console(file=io.StringIO())


async def measure(measured: EvaluationRecipe) -> dict[str, Any]:
    return summarize(await evaluate(measured, InProcess(Settings(cpu_threads=2), engine()), QUIET))


async def test_people_who_are_found_score_one_and_joints_are_joined_by_name(cards: Path) -> None:
    figures = (await measure(recipe(cards)))["sets"]["cards"]
    assert figures["keypoints"]["AP"] == pytest.approx(1)
    assert figures["boxes"]["AP50"] == pytest.approx(1)
    assert figures["pictures"] == 4
    assert figures["joints"] == list(DATA_JOINTS)
    # The card of score 0.15 is under the served threshold of 0.25: AP ranks it, PCK does not see it.
    assert figures["pck"]["missed"] == 1
    assert figures["pck"]["mean"] == pytest.approx(5 / 6)


async def test_given_boxes_are_posed_instead_of_found_ones(cards: Path) -> None:
    summary = await measure(recipe(cards, boxes="truth"))
    figures = summary["sets"]["cards"]
    assert summary["boxes"] == "truth"
    assert figures["keypoints"]["AP"] == pytest.approx(1)
    assert figures["boxes"] is None
    assert (figures["pck"]["mean"], figures["pck"]["missed"]) == (1, 0)
    assert figures["answered_people"] == 6


async def test_sets_with_unlabelled_people_get_no_ap_of_found_boxes(cards: Path) -> None:
    figures = (await measure(recipe(cards, all_labelled=False)))["sets"]["cards"]
    assert figures["keypoints"] is None
    assert figures["boxes"] is None
    assert figures["pck"]["people"] == 6
    # What PCK does not look at is not posed: the card of score 0.15.
    assert figures["answered_people"] == 5
    assert figures["pck"]["mean"] == pytest.approx(5 / 6)


async def test_a_format_brings_its_own_figure(cards: Path) -> None:
    data = json.loads(cards.read_text())
    for image, index in zip(data["images"], (0.1, 0.5, 0.9, 0.1), strict=True):
        image["crowdIndex"] = index
    cards.write_text(json.dumps(data))
    source = {"annotations": cards, "images": cards.parent / "pictures"}

    async def own(**fields: str) -> dict[str, Any]:
        given = {"data": [{**source, **fields}], "resamples": 5, "options": {"box_threshold": 0.05}}
        return (await measure(EvaluationRecipe.model_validate(given)))["sets"]["cards"]

    plain, crowded, aic = await own(), await own(format="crowdpose"), await own(metric="aic")
    assert not {"crowdpose", "aic", "pckh"} & plain.keys()
    assert {part: row["pictures"] for part, row in crowded["crowdpose"].items()} == {"easy": 2, "medium": 1, "hard": 1}
    assert crowded["crowdpose"]["easy"]["AP"] == pytest.approx(1)
    # The card of score 0.15 is not served: five of six people are met.
    assert aic["aic"]["score"] == pytest.approx(5 / 6)
    assert (aic["aic"]["labelled"], aic["aic"]["answered"]) == (6, 5)
    console = Console(file=io.StringIO(), width=200)
    for figures in (crowded, aic):
        print_tables(console, {**(await measure(recipe(cards))), "sets": {"cards": figures}})
    # A title is wrapped to its table's width.
    printed = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "Keypoints by crowding of cards" in printed
    assert "AI Challenger's score of cards: 6 people, 5 answered" in printed
    assert "83.3" in printed


async def test_pictures_marked_as_partly_labelled_do_not_count_for_ap(cards: Path) -> None:
    data = json.loads(cards.read_text())
    for image in data["images"]:
        image["all_people_labelled"] = image["id"] != 10
    # Its people are no longer labelled: as mistakes they would cost AP.
    data["annotations"] = [annotation for annotation in data["annotations"] if annotation["image_id"] != 10]
    cards.write_text(json.dumps(data))
    assert (await measure(recipe(cards)))["sets"]["cards"]["keypoints"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize("boxes", ["detector", "truth"])
async def test_a_live_service_and_the_process_give_the_same_figures(cards: Path, boxes: str) -> None:
    measured = recipe(cards, boxes=boxes, options={"fusion": "1,0.5", "flip": True, "nms_oks": 0.9, "rescore": False})
    app = create_app(Settings(cpu_threads=2), engine())
    async with app.router.lifespan_context(app):
        await app.state.service.readiness.wait()
        service = OverHttp("http://pose", transport=httpx.ASGITransport(app))
        remote = summarize(await evaluate(measured, service, QUIET))
    local = await measure(measured)
    for summary in (remote, local):
        del summary["service"], summary["sets"]["cards"]["ms_per_picture"], summary["sets"]["cards"]["latency_ms"]
    assert remote == local


async def test_the_service_gets_the_recipes_options(cards: Path) -> None:
    fake = engine()
    measured = recipe(cards, options={"fusion": "1,0", "flip": True, "max_people": 1})
    summary = summarize(await evaluate(measured, InProcess(Settings(cpu_threads=2), fake), QUIET))
    assert {call.model for call in fake.calls} == {"person_detector", "pose_flip"}
    assert all(call.inputs["fusion_weights"].tolist() == [[1, 0]] for call in fake.calls if call.model == "pose_flip")
    assert summary["options"]["fusion"] == "1,0"
    assert summary["sets"]["cards"]["answered_people"] == 3


async def test_several_pictures_are_in_flight_and_answers_keep_their_order(cards: Path) -> None:
    fake = engine()
    running = most = 0
    infer = fake.infer

    async def slow(model: str, inputs: Any, *, timeout: float | None = None) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05 if len(fake.calls) % 2 else 0.01)
        running -= 1
        return await infer(model, inputs, timeout=timeout)

    fake.infer = slow  # type: ignore[method-assign]
    done = await evaluate(recipe(cards, in_flight=3), InProcess(Settings(cpu_threads=2), fake), QUIET)
    assert most == 3
    assert [answer.id for answer in done.sets[0].answers] == [10, 20, 30, 40]


async def test_what_cannot_be_measured_says_why(cards: Path) -> None:
    with pytest.raises(EvaluationError, match="no pose model 'posee'; there are pose"):
        await measure(recipe(cards, options={"model": "posee"}))
    data = json.loads(cards.read_text())
    data["images"][0]["width"] = 240
    cards.write_text(json.dumps(data))
    with pytest.raises(EvaluationError, match=r"cards1.png is 320 x 240 when upright.*240 x 240"):
        await measure(recipe(cards))
    data["images"][0]["file_name"] = "elsewhere.png"
    cards.write_text(json.dumps(data))
    with pytest.raises(EvaluationError, match=r"elsewhere.png"):
        await measure(recipe(cards))


async def test_a_service_too_slow_for_its_deadline_brings_advice(cards: Path) -> None:
    fake = engine()
    app = create_app(Settings(cpu_threads=2, deadline_seconds=0.2), fake)
    async with app.router.lifespan_context(app):
        await app.state.service.readiness.wait()
        fake.delay = 1.0
        service = OverHttp("http://pose", transport=httpx.ASGITransport(app))
        with pytest.raises(EvaluationError, match="--in-flight"):
            await evaluate(recipe(cards), service, QUIET)


async def test_a_limit_spreads_over_the_set(cards: Path) -> None:
    data = read_coco(recipe(cards).data[0])
    assert [image.id for image in limited(data, 2).images] == [10, 40]
    assert limited(data, 9) is data
    figures = (await measure(recipe(cards, limit=1)))["sets"]["cards"]
    assert figures["pictures"] == 1
    assert figures["keypoints"]["spread"] is None


async def test_the_saved_results_load_into_the_data_set_unchanged(cards: Path, tmp_path: Path) -> None:
    done = await evaluate(recipe(cards), InProcess(Settings(cpu_threads=2), engine()), QUIET)
    (saved,) = save_results(done, tmp_path / "out" / "results.json")
    truth = COCO(str(cards))
    found = truth.loadRes(str(saved))
    first = found.loadAnns(found.getAnnIds(imgIds=[20]))[0]
    x, y = np.reshape(first["keypoints"], (3, 3))[DATA_JOINTS.index("left_wrist"), :2]
    assert (x, y) == pytest.approx(CARDS[1][0].points[MODEL.joints.index("left_wrist")], abs=1.5)


async def test_the_worst_pictures_are_drawn_worst_first(cards: Path, tmp_path: Path) -> None:
    done = await evaluate(recipe(cards), InProcess(Settings(cpu_threads=2), engine()), QUIET)
    drawn = draw_worst(done, tmp_path / "worst", 2)
    # One of picture 3's people is under the served threshold.
    assert drawn[0].name.startswith("001_cards3_oks0.6")
    assert drawn[0].parent.name == "cards"
    assert len(drawn) == 2
    # Truth and answer side by side, large enough to be looked at.
    assert cv2.imread(str(drawn[0])).shape == (480, 2 * 640, 3)


def test_the_recipe_names_the_photographs_and_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", str(tmp_path))
    path = Path(__file__).parents[2] / "training" / "recipes" / "evaluate.yaml"
    measured = read_recipe(path, EvaluationRecipe)
    assert [source.annotations.stem for source in measured.data] == ["coco_val", "lsp_val"]
    assert [source.all_labelled for source in measured.data] == [True, False]
    assert measured.options.max_people == 100  # as many as box AP counts


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a live server over the fake engine; in process, the command finds the same engine."""
    monkeypatch.setattr("training.answers.open_engine", lambda settings: engine())
    config = uvicorn.Config(create_app(Settings(cpu_threads=2), engine()), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def command(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "60"}).invoke(training_app, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_tables_and_ends_in_one_json_line(cards: Path, served: str, tmp_path: Path) -> None:
    sets = ["--annotations", cards, "--images", cards.parent / "pictures"]
    files = ["--save", tmp_path / "results.json", "--draw", tmp_path / "worst", "--worst", 1]
    code, local, _ = command(*sets, *files, "--fusion", "1,0", "--set", "resamples=10")
    assert code == 0
    assert "PCK@0.2 of cards: 6 people" in local
    code, remote, _ = command(*sets, "--url", served, "--fusion", "1,0", "--set", "resamples=10", "--in-flight", 3)
    assert code == 0
    summaries = [json.loads(text.splitlines()[-1]) for text in (local, remote)]
    figures = [summary["sets"]["cards"] for summary in summaries]
    for key in ("keypoints", "boxes", "pck"):
        assert figures[0][key] == figures[1][key]
    assert figures[0]["keypoints"]["AP"] == pytest.approx(1)
    assert summaries[1]["service"] == served
    assert json.loads((tmp_path / "results.json").read_text())
    assert len(list((tmp_path / "worst" / "cards").iterdir())) == 1


def test_the_command_measures_several_sets(tmp_path: Path, served: str) -> None:
    first, second = write_cards(tmp_path / "a"), write_cards(tmp_path / "b").rename(tmp_path / "b" / "others.json")
    code, text, _ = command(
        "--annotations", first, "--images", tmp_path / "a" / "pictures", "--annotations", second,
        "--images", tmp_path / "b" / "pictures", "--boxes", "truth", "--limit", 3, "--save", tmp_path / "out.json",
    )  # fmt: skip
    assert code == 0
    assert set(json.loads(text.splitlines()[-1])["sets"]) == {"cards", "others"}
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.cards.json", "out.others.json"]


def test_wrong_flags_are_told_in_one_line(cards: Path, served: str) -> None:
    sets = ["--annotations", cards, "--images", cards.parent / "pictures"]
    assert command("--annotations", cards)[0] == 2
    assert command(*sets, "--url", served, "--repository", cards.parent)[0] == 2
    for wrong, says in (
        (["--boxes", "mine"], "boxes"),
        (["--model", "nobody"], "nobody"),
        (["--fusion", "1,1,1,1"], "4 weights"),
        (["--url", "http://127.0.0.1:9"], "ConnectError"),
        (["--annotations", cards.parent / "none.json", "--images", cards.parent], "none.json"),
    ):
        code, _, error = command(*sets, *wrong)
        assert code == 1
        assert says in error
        assert "Traceback" not in error


def test_skeletons_of_two_kinds_share_what_they_share(cards: Path) -> None:
    """The report names the joints that the model lacks."""
    data = json.loads(cards.read_text())
    data["categories"][0]["keypoints"] = ["left_shoulder", "neck", "left_wrist"]
    cards.write_text(json.dumps(data))
    figures = asyncio.run(measure(recipe(cards)))["sets"]["cards"]
    assert figures["joints_left_out"] == ["neck"]
    assert figures["keypoints"]["AP"] == pytest.approx(1)
    assert figures["pck"] is None  # no torso


def test_the_recipes_photographs_are_all_there(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", str(photographs))
    path = Path(__file__).parents[2] / "training" / "recipes" / "evaluate.yaml"
    coco_val, lsp_val = (read_coco(source) for source in read_recipe(path, EvaluationRecipe).data)
    assert sum(len(image.people) for image in coco_val.images) == 2113
    assert sum(person.labelled > 0 for image in coco_val.images for person in image.people) == 1243
    assert set(lsp_val.skeleton.joints) == set(LSP14.joints)
    assert all(image.path.is_file() for image in (*coco_val.images, *lsp_val.images))
