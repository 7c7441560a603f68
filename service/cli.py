"""The command line: ``tritonpose serve | predict | models | settings | keys`` (or ``python -m service``)."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from service import __version__
from service.key_commands import commands as key_commands
from service.settings import Settings

app = typer.Typer(
    help="Multi-person pose estimation: an image in, COCO poses out.", no_args_is_help=True, add_completion=False
)
app.add_typer(key_commands, name="keys")
_errors = Console(stderr=True, highlight=False)
_output = Console(highlight=False)

Repository = Annotated[Path | None, typer.Option(help="Model repository. Default: the one that came along.")]
Engine = Annotated[str | None, typer.Option(help="embedded or triton. Default: embedded.")]
TritonUrl = Annotated[str | None, typer.Option(help="Host and port of Triton's gRPC service.")]
Threads = Annotated[int | None, typer.Option(min=0, help="Threads that run networks; 0 takes all cores.")]


def _settings(**given: Any) -> Settings:
    """Settings from the environment, and options of the command line over them."""
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            _errors.print(f"[red]setting {'.'.join(map(str, problem['loc']))}[/red]: {problem['msg']}")
        raise typer.Exit(2) from None
    if settings.engine == "embedded" and not settings.repository.is_dir():
        _errors.print(f"[red]there is no model repository at {settings.repository}[/red] (--repository)")
        raise typer.Exit(2)
    return settings


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. Default: 8000.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that serve the port. Default: 1.")] = None,
    repository: Repository = None,
    threads: Threads = None,
    engine: Engine = None,
    triton_url: TritonUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load all models, try them on a picture, exit.")] = False,
) -> None:
    """Start the HTTP service."""
    settings = _settings(
        host=host,
        port=port,
        workers=workers,
        repository=repository,
        threads=threads,
        engine=engine,
        triton_url=triton_url,
    )
    if dry_run:
        asyncio.run(_dry_run(settings))
        return
    from service.logs import set_up

    set_up(settings)
    if settings.workers > 1:
        from service.supervisor import Supervisor  # without the application: the workers load it

        well = Supervisor(settings).run()
    else:
        from service.server import serve as serve_http

        well = serve_http(settings)
    if not well:
        raise typer.Exit(1)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.", exists=True)],
    out: Annotated[Path | None, typer.Option(help="File for the JSON. Default: standard output.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Folder for the pictures with the people drawn in.")] = None,
    format: Annotated[str, typer.Option(help="coco or results.")] = "coco",
    model: Annotated[str | None, typer.Option(help="Pose model.")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="Joint score from which v is 2 and is drawn.")] = None,
    box_threshold: Annotated[float | None, typer.Option(help="Lowest detector score of a person.")] = None,
    max_people: Annotated[int, typer.Option(help="Most people in one picture.")] = 20,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Average with the mirrored crop. Default: the model's own.")
    ] = None,
    repository: Repository = None,
    threads: Threads = None,
    engine: Engine = None,
    triton_url: TritonUrl = None,
) -> None:
    """Find the people of pictures, without a server. Exits with 1 when a picture could not be read."""
    from service.errors import InvalidOption, ServiceError
    from service.options import read_options
    from service.prediction import find_pictures, predict_files

    settings = _settings(repository=repository, threads=threads, model=model, engine=engine, triton_url=triton_url)
    if format not in ("coco", "results"):
        _errors.print(f"[red]--format {format}[/red]: coco or results (--draw FOLDER draws)")
        raise typer.Exit(2)
    given = {"model": settings.model, "score_threshold": score_threshold, "box_threshold": box_threshold}
    try:
        options = read_options({**given, "max_people": max_people, "flip": flip, "format": format}.items())
        files = find_pictures(images)
        document, failed = asyncio.run(predict_files(files, options, settings, draw, _errors))
    except ServiceError as error:
        _errors.print(f"[red]{error.title}[/red]: {error.detail}")
        raise typer.Exit(2 if isinstance(error, InvalidOption) else 1) from None
    if out is None:
        typer.echo(document)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(document + b"\n")
        _errors.print(f"{len(files) - failed} of {len(files)} pictures -> {out}")
    if failed:
        raise typer.Exit(1)


@app.command()
def models(
    repository: Repository = None,
    engine: Engine = None,
    triton_url: TritonUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as GET /v1/models answers.")] = False,
) -> None:
    """List the models of the repository, or of a Triton server."""
    from service.errors import ServiceError

    try:
        listed = asyncio.run(_list_models(_settings(repository=repository, engine=engine, triton_url=triton_url)))
    except ServiceError as error:
        _errors.print(f"[red]{error.title}[/red]: {error.detail}")
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"models": listed}, indent=1))
        return
    table = Table("model", "kind", "versions", "skeleton", "batch")
    for one in listed:
        versions, skeleton = ", ".join(map(str, one["versions"])), one.get("skeleton", {}).get("preset", "")
        table.add_row(one["name"], one["kind"], versions, skeleton, str(one["max_batch_size"]))
    _output.print(table)


@app.command()
def settings() -> None:
    """List every setting, its variable and the value in force."""
    table = Table("variable", "value", "meaning")
    values = Settings()
    for name, field in Settings.model_fields.items():
        table.add_row(f"TRITONPOSE_{name.upper()}", str(getattr(values, name)), field.description)
    _output.print(table)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


async def _dry_run(settings: Settings) -> None:
    from service.catalogue import list_models
    from service.engine_choice import open_engine
    from service.errors import ServiceError
    from service.pipeline import PosePipeline
    from service.readiness import rehearse

    started = time.perf_counter()
    engine = open_engine(settings)
    pipeline = PosePipeline(engine, settings)
    try:
        await engine.start()
        loaded = time.perf_counter() - started
        listed = await list_models(engine)
        took = await rehearse(pipeline)
    except ServiceError as error:
        _errors.print(f"[red]{error.title}[/red]: {error.detail}")
        raise typer.Exit(1) from None
    finally:
        await engine.close()
        pipeline.close()
    versions = [f"{one['name']} {max(one['versions'], default='?')}" for one in listed]
    _output.print(f"{engine.kind} engine, {settings.repository if engine.kind == 'embedded' else engine.place}")
    _output.print(f"loaded in {loaded:.2f} s: {', '.join(versions)}", soft_wrap=True)
    for name, stages in took.items():
        parts = ", ".join(f"{stage} {spent:.1f}" for stage, spent in stages.milliseconds().items())
        _output.print(f"{name}: two pictures, milliseconds: {parts}", soft_wrap=True)
    _output.print(f"ready in {time.perf_counter() - started:.2f} s: {', '.join(took)}", soft_wrap=True)


async def _list_models(settings: Settings) -> list[dict[str, Any]]:
    from service.catalogue import list_models
    from service.engine_choice import open_engine

    engine = open_engine(settings)
    try:
        await engine.start()
        return await list_models(engine)
    finally:
        await engine.close()
