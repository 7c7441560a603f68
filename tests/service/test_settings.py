"""Settings: what an operator writes into the environment must hold, and mistakes must be told at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_every_setting_is_explained() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_holds_and_other_variables_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_PORT", "9000")
    monkeypatch.setenv("TRITONPOSE_REPOSITORY", "~/models")
    monkeypatch.setenv("TRITONPOSE_DATA", "/photographs")
    settings = Settings()
    assert settings.port == 9000
    assert settings.repository == Path.home() / "models"
    assert Settings(port=9001).port == 9001, "the command line outweighs the environment"


def test_keys_are_a_list_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TRITONPOSE_API_KEYS", "first-key-of-32-characters-or-more, second-key-of-32-characters-or-more,"
    )
    keys = Settings().api_keys
    assert [key.get_secret_value() for key in keys] == [
        "first-key-of-32-characters-or-more",
        "second-key-of-32-characters-or-more",
    ]
    assert "first" not in repr(Settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("MAX_IMAGES", "0"),
        ("DEADLINE_SECONDS", "-1"),
        ("LOG_LEVEL", "loud"),
        ("ENGINE", "tensorrt"),
        ("TRITON_URL", "http://triton:8001"),
        ("TRITON_URL", "triton"),
        ("TRITON_URL", "triton:0"),
        ("TRITON_URL", "::1:8001"),
        ("TRITON_CONCURRENCY", "0"),
        ("TRITON_SHARED_MEMORY", "yes"),
        ("TRUSTED_PROXIES", "*"),
        ("TRUSTED_PROXIES", "10.0.0.1, proxy.local"),
        ("API_KEYS_FILE", "/there/is/no/such/file"),
        ("API_KEYS", "a-key-that-is-long-enough-for-anybody, short"),
        ("METRICS_NEED_KEY", "true"),
    ],
)
def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TRITONPOSE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_a_key_that_can_be_guessed_is_told_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_API_KEYS", "a-key-that-is-long-enough-for-anybody,swordfish")
    monkeypatch.setenv("TRITONPOSE_METRICS_NEED_KEY", "true")
    with pytest.raises(ValidationError, match="key 2: 9 characters; at least 32") as caught:
        Settings()
    assert "swordfish" not in str(caught.value) and caught.value.error_count() == 1


def test_lists_and_files_of_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("somebody sha256:nonsense\n", encoding="utf-8")
    monkeypatch.setenv("TRITONPOSE_API_KEYS_FILE", str(file))
    with pytest.raises(ValidationError, match="line 1") as caught:
        Settings()
    assert "nonsense" not in str(caught.value), "it might be a key"
    monkeypatch.setenv("TRITONPOSE_API_KEYS_FILE", "")
    monkeypatch.setenv("TRITONPOSE_TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    assert Settings().api_keys_file is None
    assert Settings().trusted_proxies == ("10.0.0.0/8", "::1")


@pytest.mark.parametrize("url", ["localhost:8001", "triton-0.triton:9001", "10.0.0.7:8001", "[::1]:8001"])
def test_addresses_of_triton(url: str) -> None:
    assert Settings(triton_url=url).triton_url == url
