"""``agentsched serve``: the daemon, from options to a clean end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import platformdirs

from agentsched.cli.flags import config_flags, given
from agentsched.cli.serving import Loaded, Serving, before_upstreams, run_fast
from agentsched.daemon.accounts import Declared, read_declared
from agentsched.daemon.config import ConfigError, load_config, restart_needed
from agentsched.daemon.host import Watcher
from agentsched.daemon.server import Daemon, NoKeys
from agentsched.daemon.settings import Config, EngineSettings
from agentsched.daemon.state import StateError
from agentsched.engines.byte_frontend import VOCABULARY, ByteFrontend
from agentsched.engines.contract import Engine, EngineGone
from agentsched.engines.frontend import Frontend
from agentsched.engines.process import EngineProcess

# \b keeps click from rewrapping the paragraph that follows
EPILOG = """\b
Example: a daemon, an agent that knows nothing of it, and what it did
  agentsched serve --port 8090 &
  mini -m openai/demo -c mini.yaml \\
       -c model.model_kwargs.api_base=http://127.0.0.1:8090/v1 -y -t 'task'
  curl -s http://127.0.0.1:8090/agentsched/v1/programs

\b
Any OpenAI client works with base URL http://127.0.0.1:8090/v1, any Anthropic
client with http://127.0.0.1:8090, and any API key unless there are keys
(--tenants). A client that sends the
header x-agentsched-program says which program its calls belong to; without
it, its own session ids, ids of tool calls and the conversation itself tell.
"""


class Source(NamedTuple):
    """Where answers come from: the text side, and how to start the engine."""

    frontend: Frontend
    make_engine: Callable[[], Engine]

    def serving(self, config: Config) -> Serving:
        engine = config.engine
        run = {"engine": engine.kind, "capacity": engine.kv_tokens, "host_capacity": engine.host_tokens}
        tier = f" and {engine.host_tokens:,} in host memory" if engine.host_tokens else ""

        def daemon(declared: Declared, watchers: Sequence[Watcher]) -> Daemon:
            settings = config.daemon
            return Daemon(
                self.make_engine, self.frontend, settings, declared=declared, run=run, watchers=watchers
            )

        line = f"engine {engine.kind}, {engine.kv_tokens:,} KV tokens{tier}"
        return Serving(daemon, self.frontend.models()[0], line)


@click.command(epilog=EPILOG)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="AGENTSCHED_CONFIG",
    help="Read this TOML file (agentsched config new). Flags stand above it; SIGHUP reads it again.",
)
@config_flags
@click.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the URL here once it serves."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
@click.pass_context
def serve(
    ctx: click.Context, /, config_file: Path | None, ready_file: Path | None, verbose: bool, **_: object
) -> None:
    """Serve OpenAI and Anthropic APIs that schedule agent programs as wholes.

    Calls of one agent run are recognised as one program; programs are let into the engine only as far
    as their KV fits, and keep it while their tools run. Ends on Ctrl-C or SIGTERM.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    flags = given(ctx)

    def load() -> Loaded:
        config = load_config(config_file, flags)
        return Loaded(config, declared_in(config.daemon.tenants))

    try:
        loaded = load()
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    config = loaded.config
    serving = before_upstreams(config) if config.upstream.urls else _source(config.engine).serving(config)
    try:
        run_fast(_serve(serving, loaded, load, ready_file))
    except (EngineGone, NoKeys, StateError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        at = config.daemon.socket or f"{config.daemon.host}:{config.daemon.port}"
        raise click.ClickException(f"cannot serve on {at}: {error}") from error


def declared_in(tenants: Path | None) -> Declared:
    """What the tenants' file says. Raises ``ConfigError``."""
    try:
        return Declared() if tenants is None else read_declared(tenants)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tenants' file cannot be used: {error}") from error


def _source(engine: EngineSettings) -> Source:
    if engine.kind == "embedded":
        return _embedded(engine)
    return _simulated(engine)


def _memory(engine: EngineSettings) -> list[str]:
    return ["--kv-tokens", str(engine.kv_tokens), "--host-tokens", str(engine.host_tokens)]


def _simulated(engine: EngineSettings) -> Source:
    command = [sys.executable, "-m", "agentsched.engines.simulated"]
    command += [*_memory(engine), "--vocabulary", str(VOCABULARY)]
    make = partial(EngineProcess, "simulated", command, cpu_core=engine.core)
    return Source(ByteFrontend(engine.kv_tokens), make)


def _embedded(engine: EngineSettings) -> Source:
    # Imported here: the simulated engine needs none of what these import.
    from agentsched.engines.embedded.frontend import ChatFrontend
    from agentsched.engines.embedded.preset import ensure_model
    from agentsched.engines.embedded.recorded import load_scripts

    model = engine.model
    try:
        name = "demo" if model is None else model.resolve().name
        if model is None:
            cache = platformdirs.user_cache_path("agentsched") / "models"
            model = ensure_model(cache, progress=lambda text: click.echo(f"agentsched: {text}", err=True))
        recorded = load_scripts(engine.scripts) if engine.scripts else {}
        frontend = ChatFrontend(model, name=name, scripts=recorded)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"the model or its scripts cannot be used: {error}") from error
    command = [sys.executable, "-m", "agentsched.engines.embedded"]
    command += ["--model", str(model), *_memory(engine)]
    return Source(frontend, partial(EngineProcess, "embedded", command, cpu_core=engine.core))


async def _serve(
    serving: Serving, loaded: Loaded, load: Callable[[], Loaded], ready_file: Path | None
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    stop = asyncio.create_task(stopped.wait())
    running = asyncio.create_task(_run(serving, loaded, load, ready_file))
    await asyncio.wait([stop, running], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not running.done():
        running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        click.echo("agentsched: stopped", err=True)


async def _run(serving: Serving, loaded: Loaded, load: Callable[[], Loaded], ready_file: Path | None) -> None:
    config = loaded.config
    async with AsyncExitStack() as stack:
        otlp = config.telemetry.otlp
        watchers = [stack.enter_context(_spans(otlp, serving.model))] if otlp else []
        daemon = await stack.enter_async_context(serving.daemon(loaded.declared, watchers))
        reload = Reload(daemon, config, load)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        watches = ", which only observes" if config.daemon.observe else ""
        seen = config.daemon.dashboard and daemon.url.startswith("http")
        page = f"; see {daemon.url}/dashboard" if seen else ""
        policy = f"policy {config.daemon.policy}{watches}"
        click.echo(f"agentsched: listening on {daemon.url} ({policy}, {serving.line}){page}")
        if ready_file is not None:
            _announce(ready_file, daemon.url)
        await daemon.wait()


@contextmanager
def _spans(otlp: str, model: str) -> Iterator[Watcher]:
    from agentsched.daemon.spans import Spans, to_collector

    spans = Spans(to_collector(otlp), model)
    try:
        yield spans
    finally:
        spans.close()


class Reload:
    """Reads the configuration again, and tells the daemon; called on SIGHUP."""

    def __init__(self, daemon: Daemon, config: Config, load: Callable[[], Loaded]) -> None:
        self._daemon = daemon
        self._config = config
        self._load = load

    def __call__(self) -> None:
        try:
            new = self._load()
        except ConfigError as error:
            click.echo(f"agentsched: nothing is changed: {error}", err=True)
            return
        if kept := restart_needed(self._config, new.config):
            click.echo(f"agentsched: needs a restart to change: {', '.join(kept)}", err=True)
        self._daemon.reload(new.config.daemon, new.declared)
        click.echo("agentsched: the configuration is read anew", err=True)


def _announce(path: Path, url: str) -> None:
    # Renamed into place, so that whoever waits for the file never reads half of it.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(url + "\n", "utf-8")
    draft.replace(path)
