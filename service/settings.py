"""Every setting of the service, once, typed: environment variables ``TRITONPOSE_<NAME>`` or command line options.

``tritonpose settings`` prints this table with the values in force.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.cores import available_cores
from service.keys import check_key, read_keys

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"


class Settings(BaseSettings):
    """The service's settings. Raises pydantic's ValidationError naming the variable that does not fit."""

    model_config = SettingsConfigDict(env_prefix="TRITONPOSE_", frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes that serve the port, each with networks of its own.")
    worker_silence_seconds: float = Field(
        30.0, ge=1, description="A worker whose event loop stands still for so long is killed and replaced."
    )

    repository: Path = Field(REPOSITORY, description="Model repository (Triton's layout).")
    threads: int = Field(
        0, ge=0, description="Threads that run networks, in each worker; 0 shares all cores among the workers."
    )
    reload_seconds: float = Field(
        2.0, ge=0, description="How often the embedded engine looks for new models in the repository; 0 for never."
    )
    model: str = Field("pose", description="Pose model that answers when a request names none.")

    engine: Literal["embedded", "triton"] = Field(
        "embedded", description="What runs the networks: ONNX Runtime in the process, or a Triton server."
    )
    triton_url: str = Field("localhost:8001", description="Host and port of Triton's gRPC service.")
    triton_concurrency: int = Field(32, gt=0, description="Calls at Triton at a time.")
    triton_shared_memory: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Crops through /dev/shm: auto where Triton is on this machine, on for containers that share it.",
    )

    cpu_threads: int = Field(
        default_factory=lambda: max(2, available_cores()),
        ge=1,
        description="Threads that decode, crop, suppress, draw and encode.",
    )
    reduced_decoding: bool = Field(
        True, description="Large JPEG files are decoded at a half or less where the crops of their people allow."
    )
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="Largest request body (413 above).")
    # At least what the rehearsal picture has (see service.readiness).
    max_image_bytes: int = Field(20 * 2**20, ge=100_000, description="Largest picture file (413 above).")
    max_pixels: int = Field(50_000_000, ge=100_000, description="Largest picture in pixels (413 above).")
    max_images: int = Field(100, gt=0, description="Most pictures in one request (413 above).")
    pixel_budget: int = Field(
        64_000_000,
        gt=0,
        description="Pixels held at a time by all requests together (6 bytes each while decoded, of some files more).",
    )

    max_running: int = Field(8, gt=0, description="Requests worked on at a time.")
    max_waiting: int = Field(64, ge=0, description="Requests that may wait for their turn (429 above).")
    max_waiting_bytes: int = Field(128 * 2**20, gt=0, description="Bytes of request bodies held at a time (429 above).")
    max_waiting_pixels: int = Field(
        1_000_000_000, gt=0, description="Pixels of pictures that wait or are worked on, by their headers (429 above)."
    )
    max_waiting_people: int = Field(
        2000, gt=0, description="People expected in pictures that wait or are worked on (429 above)."
    )
    deadline_seconds: float = Field(
        30.0, gt=0, description="Time from a request to its answer where it names none (X-Request-Timeout; 504)."
    )
    max_deadline_seconds: float = Field(120.0, gt=0, description="Longest time that a request may name (422 above).")
    caller_rate: float = Field(0.0, ge=0, description="Requests a second of one caller; 0 for no limit (429 above).")
    caller_burst: int = Field(0, ge=0, description="Requests that a caller may send at once; 0 for one second's.")
    caller_concurrency: int = Field(
        0, ge=0, description="Requests of one caller in flight; 0 for no limit (429 above)."
    )
    max_connections: int = Field(1000, gt=0, description="Connections open at a time (429 above, and closed).")
    head_seconds: float = Field(15.0, gt=0, description="Longest time that a request's head may take to arrive (408).")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Addresses or networks whose X-Forwarded-For is believed (comma-separated); none by default."
    )
    body_seconds: float = Field(30.0, gt=0, description="Longest time that a body may take to arrive (408).")
    drain_seconds: float = Field(
        0.0, ge=0, description="On SIGTERM: time with readiness off and the port open, for balancers to notice."
    )
    shutdown_seconds: float = Field(25.0, gt=0, description="On SIGTERM: longest wait for requests in flight.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that callers must send (comma-separated); none leaves the service open."
    )
    api_keys_file: Path | None = Field(
        None, description="File of hashed keys and their limits (tritonpose keys create), read again when it changes."
    )
    metrics_need_key: bool = Field(False, description="/metrics asks for an API key, as /v1/pose does.")
    api_docs: bool = Field(True, description="/docs and /openapi.json are served.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web origins whose pages may call the API (comma-separated; * for all); none by default."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["text", "json"] = Field("text", description="Lines to read, or one JSON object a line.")

    @field_validator("api_keys", "trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(one.strip() for one in value.split(",") if one.strip()) if isinstance(value, str) else value

    @field_validator("api_keys", mode="after")
    @classmethod
    def _long_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(value, 1):
            try:
                check_key(key.get_secret_value())
            except ValueError as error:
                raise ValueError(f"key {number}: {error}") from None
        return value

    @field_validator("trusted_proxies", mode="after")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            ipaddress.ip_network(one)  # names the value that is none; "*" would believe everybody
        return value

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "*" and not re.fullmatch(r"https?://[\w.-]+(:\d+)?", one):
                raise ValueError(f"{one!r} is no origin, such as https://app.example.org (no path), nor *")
        return value

    @field_validator("api_keys_file", mode="before")
    @classmethod
    def _no_file(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("api_keys_file", mode="after")
    @classmethod
    def _readable_keys(cls, value: Path | None) -> Path | None:
        if value is not None:
            value = value.expanduser()
            read_keys(value)
        return value

    @field_validator("metrics_need_key", mode="after")
    @classmethod
    def _some_key(cls, value: bool, info: ValidationInfo) -> bool:
        given = [info.data.get(name, "wrong") for name in ("api_keys", "api_keys_file")]  # wrong: told of by itself
        if value and not any(given):
            raise ValueError(
                "/metrics would stay open: neither TRITONPOSE_API_KEYS nor TRITONPOSE_API_KEYS_FILE is set"
            )
        return value

    @field_validator("triton_url", mode="after")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        plain = re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host)
        if not plain or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{value!r} is not host:port, such as localhost:8001 (no http://; [::1]:8001 for IPv6)")
        return value

    @field_validator("repository", mode="after")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        return value.expanduser()
