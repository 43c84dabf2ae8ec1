"""``agentsched serve``: the daemon, from options to a clean end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import platformdirs

from agentsched.cli.serving import Serving, before_upstreams, run_fast
from agentsched.core import POLICY_NAMES
from agentsched.daemon.care import RULES
from agentsched.daemon.server import Daemon, Settings
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
  curl -s http://127.0.0.1:8090/agentsched/programs

\b
Any OpenAI client works with base URL http://127.0.0.1:8090/v1, any Anthropic
client with http://127.0.0.1:8090, and any API key. A client that sends the
header x-agentsched-program says which program its calls belong to; without
it, its own session ids, ids of tool calls and the conversation itself tell.
"""

_DEFAULT_KV_TOKENS = 60_000


class Memory(NamedTuple):
    """Tokens whose KV an engine holds, on its device and in host memory."""

    kv_tokens: int
    host_tokens: int

    def options(self) -> list[str]:
        return ["--kv-tokens", str(self.kv_tokens), "--host-tokens", str(self.host_tokens)]

    def line(self, engine: str) -> str:
        tier = f" and {self.host_tokens:,} in host memory" if self.host_tokens else ""
        return f"engine {engine}, {self.kv_tokens:,} KV tokens{tier}"


class Source(NamedTuple):
    """Where answers come from: the text side, how to start the engine, and what to say of it."""

    frontend: Frontend
    make_engine: Callable[[], Engine]
    line: str

    def daemon(self, settings: Settings) -> Callable[[], Daemon]:
        return lambda: Daemon(self.make_engine, self.frontend, settings)


def _usable_core(ctx: click.Context, param: click.Parameter, core: int | None) -> int | None:
    usable = os.sched_getaffinity(0)
    if core is not None and core not in usable:
        cores = ", ".join(map(str, sorted(usable)))
        raise click.BadParameter(f"core {core} is not among those that we may use: {cores}")
    return core


@click.command(epilog=EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8090, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--policy", type=click.Choice(POLICY_NAMES), default="agentsched", show_default=True)
@click.option("--engine", type=click.Choice(["embedded", "simulated"]), default="embedded", show_default=True)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Model folder: config.json, safetensors, tokenizer.json and a chat template, of the Llama, "
    "Mistral, Qwen2 or Qwen3 family. It is served under the folder's name. Without it a small model with "
    "random weights, named demo, is made on first use.",
)
@click.option(
    "--kv-tokens",
    type=click.IntRange(min=64),
    default=_DEFAULT_KV_TOKENS,
    show_default=True,
    help="Tokens whose KV the engine can hold.",
)
@click.option(
    "--host-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Tokens whose KV is kept in host memory once the engine has no room for it, and copied back when "
    "its program returns: much sooner than it is computed again. Four times --kv-tokens is a good start if "
    "memory allows. 0: KV without room is dropped.",
)
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="URL",
    help="Schedule calls for a server that is there already (SGLang, vLLM, any that speaks these APIs), and "
    "pass them on to it as they are; may be repeated. In the place of --engine. The environment's "
    "AGENTSCHED_UPSTREAM_API_KEY, if it is set, is sent to it in place of each client's key.",
)
@click.option(
    "--upstream-kv-tokens",
    type=click.IntRange(min=64),
    help="Tokens whose KV each upstream server can hold. Without it the server is asked: SGLang and vLLM "
    "tell.",
)
@click.option(
    "--upstream-silence",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds in which not a byte comes from an upstream server, after which a call has failed.",
)
@click.option(
    "--scripts",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of recorded agents, served as models recorded/NAME.",
)
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), help="Write every event and decision here."
)
@click.option(
    "--max-hold",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds that a call waits for its program's turn before it is answered with 429.",
)
@click.option(
    "--idle-close",
    type=click.FloatRange(min=0, min_open=True),
    default=900.0,
    show_default=True,
    help="Seconds without a call or a running tool after which a program counts as ended.",
)
@click.option(
    "--ping",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds between signs of life on a stream that waits.",
)
@click.option(
    "--silence",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds for which an answer that is not streamed may be silent; then white space keeps its "
    "connection alive.",
)
@click.option(
    "--no-care",
    type=click.Choice(list(RULES)),
    multiple=True,
    help="Leave out this rule of prefix care (docs/gateway.md); may be repeated.",
)
@click.option(
    "--engine-core",
    type=click.IntRange(min=0),
    callback=_usable_core,
    help="Confine the engine to this CPU core.",
)
@click.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the URL here once it serves."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
def serve(
    host: str,
    port: int,
    policy: str,
    engine: str,
    model: Path | None,
    kv_tokens: int,
    host_tokens: int,
    upstreams: tuple[str, ...],
    upstream_kv_tokens: int | None,
    upstream_silence: float,
    scripts: Path | None,
    log: Path | None,
    max_hold: float,
    idle_close: float,
    ping: float,
    silence: float,
    no_care: tuple[str, ...],
    engine_core: int | None,
    ready_file: Path | None,
    verbose: bool,
) -> None:
    """Serve OpenAI and Anthropic APIs that schedule agent programs as wholes.

    Calls of one agent run are recognised as one program; programs are let into the engine only as far
    as their KV fits, and keep it while their tools run. Ends on Ctrl-C or SIGTERM.
    """
    _log_to_stderr(verbose=verbose)
    settings = Settings(
        policy=policy,
        host=host,
        port=port,
        log=log,
        max_hold_s=max_hold,
        idle_close_s=idle_close,
        ping_s=ping,
        silence_s=silence,
        no_care=frozenset(no_care),
        run=_run_of(engine, upstreams, kv_tokens, host_tokens),
    )
    if upstreams:
        serving = before_upstreams(upstreams, upstream_kv_tokens, upstream_silence, settings)
    else:
        source = _source(engine, model, scripts, Memory(kv_tokens, host_tokens), engine_core)
        serving = Serving(source.daemon(settings), policy, source.line)
    try:
        run_fast(_serve(serving, ready_file))
    except (EngineGone, OSError) as error:
        told = f"cannot serve on {host}:{port}: {error}" if isinstance(error, OSError) else str(error)
        raise click.ClickException(told) from error


def _log_to_stderr(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _run_of(
    engine: str, upstreams: tuple[str, ...], kv_tokens: int, host_tokens: int
) -> dict[str, str | int | float]:
    """What the event log's header says of the run."""
    if upstreams:
        return {"engine": "upstream", "upstreams": " ".join(upstreams)}
    return {"engine": engine, "capacity": kv_tokens, "host_capacity": host_tokens}


def _source(
    engine: str, model: Path | None, scripts: Path | None, memory: Memory, core: int | None
) -> Source:
    if engine == "embedded":
        return _embedded(model, scripts, memory, core)
    for option, value in (("--model", model), ("--scripts", scripts)):
        if value is not None:
            raise click.UsageError(f"{option} has no meaning for the simulated engine")
    return _simulated(memory, core)


def _simulated(memory: Memory, core: int | None) -> Source:
    command = [sys.executable, "-m", "agentsched.engines.simulated"]
    command += [*memory.options(), "--vocabulary", str(VOCABULARY)]
    make = partial(EngineProcess, "simulated", command, cpu_core=core)
    return Source(ByteFrontend(memory.kv_tokens), make, memory.line("simulated"))


def _embedded(model: Path | None, scripts: Path | None, memory: Memory, core: int | None) -> Source:
    # Imported here: the simulated engine needs none of what these import.
    from agentsched.engines.embedded.frontend import ChatFrontend
    from agentsched.engines.embedded.preset import ensure_model
    from agentsched.engines.embedded.recorded import load_scripts

    try:
        name = "demo" if model is None else model.resolve().name
        if model is None:
            cache = platformdirs.user_cache_path("agentsched") / "models"
            model = ensure_model(cache, progress=lambda text: click.echo(f"agentsched: {text}", err=True))
        recorded = load_scripts(scripts) if scripts else {}
        frontend = ChatFrontend(model, name=name, scripts=recorded)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"the model or its scripts cannot be used: {error}") from error
    command = [sys.executable, "-m", "agentsched.engines.embedded"]
    command += ["--model", str(model), *memory.options()]
    make = partial(EngineProcess, "embedded", command, cpu_core=core)
    return Source(frontend, make, memory.line("embedded"))


async def _serve(serving: Serving, ready_file: Path | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    stop = asyncio.create_task(stopped.wait())
    running = asyncio.create_task(_run(serving, ready_file))
    await asyncio.wait([stop, running], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not running.done():
        running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        click.echo("agentsched: stopped", err=True)


async def _run(serving: Serving, ready_file: Path | None) -> None:
    async with serving.daemon() as daemon:
        click.echo(f"agentsched: listening on {daemon.url} (policy {serving.policy}, {serving.line})")
        if ready_file is not None:
            _announce(ready_file, daemon.url)
        await daemon.wait()


def _announce(path: Path, url: str) -> None:
    # Renamed into place, so that whoever waits for the file never reads half of it.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(url + "\n", "utf-8")
    draft.replace(path)
