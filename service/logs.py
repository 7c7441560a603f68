"""The log on standard error: lines to read, or one JSON object a line for what collects them.

Fields that belong to a line (``extra={"fields": {...}}``) become keys of the object; the text says them in words. Keys,
pictures and query strings are in neither.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from pydantic_core import to_json
from rich.console import Console

from service import __version__
from service.settings import Settings

logger = logging.getLogger(__name__)

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TEXT_OF_WORKERS = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    """Lines to read, in local time; a second is put into words once, however many lines it has."""

    _known = (-1, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """``2026-11-22 10:11:12,345``."""
        second, text = self._known
        if second != int(record.created):
            second = int(record.created)
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._known = second, text
        return f"{text},{int(record.msecs):03d}"


class JsonFormatter(logging.Formatter):
    """One object a line: ``time`` (UTC), ``level``, ``logger``, ``process``, ``message``, and the line's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return to_json(line, fallback=repr).decode()


def set_up(settings: Settings) -> None:
    """Log as the settings say; what uvicorn and Python's warnings have to say comes the same way."""
    handler = logging.StreamHandler()
    text = _TEXT_OF_WORKERS if settings.workers > 1 else _TEXT
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter(text))
    # No line tells its place in the code, its thread or a process's name; finding them out is a quarter of a line's
    # time, of which a refused request has one (Python's logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel("WARNING")
    logging.getLogger("PIL").setLevel("INFO")  # below that it writes down the texts and places in pictures' metadata
    logging.getLogger("python_multipart").setLevel("ERROR")  # it warns about every broken body; the caller is told


def announce(settings: Settings, port: int) -> None:
    """Say where the service listens: on standard output for people, as a line of the log for what collects it."""
    shown = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host
    address = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    if settings.log_format == "json":
        logger.info("listening at %s", address, extra={"fields": {"address": address, "version": __version__}})
        return
    told = (
        f"[bold]tritonpose {__version__}[/bold]\n"
        f"  page  {address}/\n"
        f"  docs  {address}/docs\n"
        f"  try   curl -F image=@photo.jpg {address}/v1/pose"
    )
    Console().print(told, highlight=False, soft_wrap=True)
