"""The command line, on a small real model repository through ONNX Runtime."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from service.cli import app
from service.scenes import render_scene
from tests.loadtest.stand_in import write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        Image.fromarray(render_scene(seed, size=(320, 240), people=2).image).save(folder / f"scene{seed}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Standard output and error; fails when the exit code is another."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_a_folder_becomes_one_coco_document_and_drawn_pictures(
    repository: Path, pictures: Path, tmp_path: Path
) -> None:
    out, drawn = tmp_path / "deep" / "people.json", tmp_path / "drawn"
    run("predict", pictures, "--out", out, "--draw", drawn, "--repository", repository)
    document = json.loads(out.read_text())
    assert [(image["id"], image["file_name"]) for image in document["images"]] == [
        (1, "scene0.png"), (2, "scene1.png"), (3, "scene2.png")
    ]  # fmt: skip
    assert {one["image_id"] for one in document["annotations"]} == {1, 2, 3}
    assert document["info"]["engine"] == "embedded"
    assert len(list(drawn.glob("*.jpg"))) == 3
    with Image.open(drawn / "0001-scene0.jpg") as picture:
        assert picture.size == (320, 240)


def test_results_on_standard_output_are_a_bare_list(repository: Path, pictures: Path) -> None:
    stdout, _ = run("predict", pictures / "scene0.png", "--format", "results", "--repository", repository)
    assert {one["image_id"] for one in json.loads(stdout)} == {1}


def test_a_picture_that_cannot_be_read_is_told_and_the_others_are_answered(
    repository: Path, pictures: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"text")
    stdout, stderr = run("predict", broken, pictures / "scene0.png", "--repository", repository, code=1)
    assert "broken.jpg" in stderr
    assert [image["file_name"] for image in json.loads(stdout)["images"]] == ["scene0.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "image"], "--format image"),
        (["--score-threshold", "2"], "score_threshold"),
        (["--model", "nobody"], "there are pose"),
        (["--max-people", "0"], "max_people"),
    ],
)
def test_wrong_options_are_named(repository: Path, pictures: Path, options: list[str], said: str) -> None:
    _, stderr = run("predict", pictures / "scene0.png", "--repository", repository, *options, code=2)
    assert said in stderr


def test_models_are_listed(repository: Path) -> None:
    stdout, _ = run("models", "--repository", repository, "--json")
    kinds = {model["name"]: model["kind"] for model in json.loads(stdout)["models"]}
    assert kinds["pose"] == "pose"
    assert kinds["person_detector"] == "detector"
    assert "person_detector" in run("models", "--repository", repository)[0]


def test_dry_run_tries_every_pose_model(repository: Path, tmp_path: Path) -> None:
    said = run("serve", "--dry-run", "--repository", repository)[0]
    assert "embedded engine" in said and re.search(r"loaded in [\d.]+ s: .*person_detector 1, pose 1", said)
    assert re.search(r"pose: .*decode [\d.]+, letterbox [\d.]+, detector [\d.]+, .*pose [\d.]+", said), "a real picture"
    assert re.search(r"ready in [\d.]+ s: pose", said)
    (tmp_path / "empty").mkdir()
    for name, code in (("nowhere", 2), ("empty", 1)):
        _, stderr = run("serve", "--dry-run", "--repository", tmp_path / name, code=code)
        assert name in stderr.replace("\n", "")


@pytest.mark.parametrize("command", [["models"], ["serve", "--dry-run"], ["predict", "docs/images/people.jpg"]])
def test_a_triton_server_that_is_not_there_is_told_with_its_address(command: list[str]) -> None:
    triton = ["--engine", "triton", "--triton-url", "127.0.0.1:1", "--repository", "/nowhere"]
    _, stderr = run(*command, *triton, code=1)
    assert "Triton at 127.0.0.1:1 cannot be reached" in stderr.replace("\n", " ")
    _, stderr = run(*command, "--triton-url", "http://127.0.0.1:1", code=2)
    assert "setting triton_url" in stderr


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_MAX_IMAGES", "7")
    monkeypatch.setenv("TRITONPOSE_API_KEYS", "secret-one-of-32-characters-or-more,secret-two-of-32-characters-or-more")
    monkeypatch.setenv("COLUMNS", "200")
    stdout, _ = run("settings")
    assert "TRITONPOSE_MAX_IMAGES" in stdout
    assert "secret" not in stdout
    monkeypatch.setenv("TRITONPOSE_MAX_IMAGES", "many")
    assert "max_images" in run("serve", "--dry-run", code=2)[1]


def test_version() -> None:
    assert run("--version")[0].strip().count(".") == 2
