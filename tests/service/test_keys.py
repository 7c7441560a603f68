"""API keys: kept as hashes, from a file that may change, made by a command."""

from __future__ import annotations

import hashlib
import logging
import re
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from service.cli import app
from service.errors import Forbidden, Unauthorized
from service.keys import KeyRing, Limits, key_line, new_key, read_keys


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_are_long_random_and_recognisable() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"tpose_[\w-]{43}", key) for key in keys)


def test_a_line_holds_a_hash_and_no_key(tmp_path: Path) -> None:
    key = new_key()
    line = key_line("ann", key, Limits(rate=2.5, concurrency=4))
    assert key not in line
    assert line == f"ann sha256:{hashlib.sha256(key.encode()).hexdigest()} rate=2.5 concurrency=4"
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{line}  # since May\n", encoding="utf-8")
    (read,) = read_keys(file)
    assert (read.name, read.limits) == ("ann", Limits(rate=2.5, concurrency=4))
    found = KeyRing(file=file).authenticate(bearer(key))
    assert found == read
    assert hashlib.sha256(key.encode()).hexdigest() not in repr(found)


def test_without_keys_everybody_is_let_in_and_with_an_empty_file_nobody(tmp_path: Path) -> None:
    assert KeyRing().authenticate({}) is None
    file = tmp_path / "keys"
    file.write_text("# none yet\n", encoding="utf-8")
    with pytest.raises(Unauthorized):
        KeyRing(file=file).authenticate({})
    with pytest.raises(Forbidden):
        KeyRing(file=file).authenticate(bearer(new_key()))


@pytest.mark.parametrize(
    "headers",
    [bearer("alpha"), {"authorization": "BEARER  alpha"}, {"x-api-key": "alpha"}],
)
def test_keys_of_the_environment(headers: dict[str, str]) -> None:
    found = KeyRing([SecretStr("beta"), SecretStr("alpha")]).authenticate(headers)
    assert found is not None
    assert found.name == "key-2"


@pytest.mark.parametrize("sent", ["alph", "alphaa", "Alpha", "", "sha256:" + hashlib.sha256(b"alpha").hexdigest()])
def test_anything_but_a_key_is_refused(sent: str) -> None:
    with pytest.raises((Unauthorized, Forbidden)):
        KeyRing([SecretStr("alpha")]).authenticate({"x-api-key": sent})
    with pytest.raises(Unauthorized):
        KeyRing([SecretStr("alpha")]).authenticate({"authorization": "Basic alpha"})


GOOD = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        "secretpaste",
        "ann secretpaste",
        "ann sha256:secretpaste",
        "ann md5:" + "0" * 64,
        f"an/n {GOOD}",
        f"ann {GOOD} secretpaste",
        f"ann {GOOD} rate=-1",
        f"ann {GOOD} rate=nan",
        f"ann {GOOD} rate=1 rate=2",
        f"ann {GOOD} burst=1.5",
        f"ann {GOOD} colour=1",
        f"bob {GOOD}\nann {GOOD}",
        f"ann {GOOD}\nann sha256:{'1' * 64}",
    ],
)
def test_mistakes_in_a_file_are_told_by_line_and_not_by_what_stands_there(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"line {2 + line.count(chr(10))}") as caught:
        read_keys(file)
    assert str(file) in str(caught.value)
    assert "secretpaste" not in str(caught.value)


def test_a_changed_file_counts_and_a_broken_one_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, clock = tmp_path / "keys", Clock()
    first, second = new_key(), new_key()
    file.write_text(key_line("first", first) + "\n", encoding="utf-8")
    ring = KeyRing(file=file, clock=clock)
    assert ring.authenticate(bearer(first))
    file.write_text(key_line("second", second, Limits(rate=1)) + "\n", encoding="utf-8")
    clock.now += 2
    found = ring.authenticate(bearer(second))
    assert found is not None
    assert found.limits.rate == 1
    with pytest.raises(Forbidden):
        ring.authenticate(bearer(first))
    with caplog.at_level(logging.ERROR):
        file.write_text(key_line("second", second) + f"\noops {first}\n", encoding="utf-8")
        clock.now += 2
        assert ring.authenticate(bearer(second))
        file.unlink()
        clock.now += 2
        assert ring.authenticate(bearer(second)), "a file that is being replaced locks nobody out"
    assert caplog.text.count("stay as they were") == 2
    assert "line 2" in caplog.text
    assert first not in caplog.text


def run(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["keys", *arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_a_key_once_and_keeps_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    status, printed, told = run("create", "ann", "--file", str(file), "--rate", "2", "--concurrency", "3")
    key = printed.strip()
    assert status == 0, told
    assert key not in file.read_text(encoding="utf-8") + told
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = KeyRing(file=file).authenticate(bearer(key))
    assert found is not None
    assert (found.name, found.limits) == ("ann", Limits(rate=2, concurrency=3))
    assert run("create", "ann", "--file", str(file))[0] == 2, "the name is taken"
    status, printed, told = run("create", "bob")
    assert key_line("bob", printed.strip()) in told.replace("\n", " ")
    assert run("create", "an/n")[0] == 2
    assert run("list", str(file))[1] == "ann rate=2 concurrency=3\n"


def test_a_key_that_exists_comes_from_standard_input(tmp_path: Path) -> None:
    file, key = tmp_path / "keys", new_key()
    assert run("hash", "old", "--file", str(file), stdin=key + "\n")[0] == 0
    assert KeyRing(file=file).authenticate(bearer(key))
    assert run("hash", "short", stdin="password\n")[0] == 2
