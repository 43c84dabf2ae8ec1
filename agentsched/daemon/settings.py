"""All that an operator can set: the one source of the configuration file, its reference page and the flags.

Each field's ``Meta`` says what it means, within what bounds it is, and in ``extra``

* ``live``: a reload changes it in the running daemon; else a restart is needed;
* ``flag``: its flag of ``agentsched serve``, where that does not follow from the field's name;
* ``choices``: the values that there are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import platformdirs
from msgspec import Meta

from agentsched.core import POLICY_NAMES
from agentsched.daemon.care import RULES

LIVE = {"live": True}


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""


class Settings(Section, frozen=True, kw_only=True):
    """How calls are taken, scheduled and answered."""

    host: Annotated[str, Meta(description="Address to listen on.", min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port to listen on. 0: a free one.", ge=0, le=65535)] = 8090
    socket: Annotated[
        Path | None, Meta(description="Listen on a Unix socket with this path instead of a port.")
    ] = None
    socket_mode: Annotated[
        str,
        Meta(description="Who may connect to the Unix socket, as octal permissions.", pattern="^0?[0-7]{3}$"),
    ] = "0600"
    policy: Annotated[
        str, Meta(description="How programs are scheduled.", extra={"choices": POLICY_NAMES})
    ] = "agentsched"
    observe: Annotated[
        bool,
        Meta(
            description="Decide and log, but act on nothing: every call is let through at once, and engines "
            "get no orders. As without a scheduler (fcfs-lru), with what one would do on record.",
            extra=LIVE,
        ),
    ] = False
    log: Annotated[
        Path | None,
        Meta(description="Write every event and decision here (agentsched replay reads it)."),
    ] = None
    log_bytes: Annotated[
        int, Meta(description="Bytes after which the log goes on in a new file.", ge=10_000)
    ] = 64_000_000
    log_files: Annotated[
        int, Meta(description="Files of the log that are kept, the newest one among them.", ge=1)
    ] = 8
    state: Annotated[
        Path | None,
        Meta(
            description="Folder of what outlives the daemon: programs, who is who, what was learned, "
            "accounts. By default one for each port or socket in the user's state folder; none with port 0."
        ),
    ] = None
    keep_state: Annotated[
        bool,
        Meta(
            description="Keep a state at all; else the daemon begins with nothing and leaves nothing.",
            extra={"flag": "--keep-state/--no-state"},
        ),
    ] = True
    max_hold_s: Annotated[
        float,
        Meta(
            description="Seconds that a call waits for its program's turn before it is answered with 429.",
            gt=0,
            extra=LIVE,
        ),
    ] = 600.0
    tenants: Annotated[
        Path | None,
        Meta(
            description="TOML file of tenants, hashes of their API keys, and shared prefixes "
            "(docs/gateway.md); agentsched key new makes keys. Without keys, only 127.0.0.1 and the like "
            "are served. A reload reads it again.",
            extra=LIVE,
        ),
    ] = None
    idle_floor_s: Annotated[
        float,
        Meta(description="Seconds of silence before which no program counts as ended.", gt=0, extra=LIVE),
    ] = 60.0
    idle_close_s: Annotated[
        float,
        Meta(
            description="Seconds without a call or a running tool after which a program counts as ended in "
            "any case; before, it does once a return is improbable by what was seen of others.",
            gt=0,
            extra=LIVE,
        ),
    ] = 3600.0
    ping_s: Annotated[
        float,
        Meta(description="Seconds between signs of life on a stream that waits.", gt=0, extra=LIVE),
    ] = 5.0
    silence_s: Annotated[
        float,
        Meta(
            description="Seconds for which an answer that is not streamed may be silent; then white space "
            "keeps its connection alive.",
            gt=0,
            extra=LIVE,
        ),
    ] = 30.0
    retry_grace_s: Annotated[
        float,
        Meta(
            description="Seconds that a held call waits for the retry of a client that went away.",
            ge=0,
            extra=LIVE,
        ),
    ] = 2.0
    stall_s: Annotated[
        float,
        Meta(
            description="Seconds that an engine which has calls may say nothing, before it is taken for hung "
            "and started anew.",
            gt=0,
        ),
    ] = 120.0
    drain_s: Annotated[
        float, Meta(description="Seconds that running calls have to end on the way down.", ge=0, extra=LIVE)
    ] = 3.0
    no_care: Annotated[
        frozenset[str],
        Meta(
            description="Rules of prefix care (docs/gateway.md) that are left out.",
            extra=LIVE | {"choices": tuple(RULES)},
        ),
    ] = frozenset()
    dashboard: Annotated[
        bool,
        Meta(
            description="Serve the dashboard (docs/dashboard.md), and with it what agentsched top shows. "
            "Without it their paths are 404."
        ),
    ] = True
    body_limit_bytes: Annotated[
        int, Meta(description="Bytes of the largest request that is read.", ge=1024)
    ] = 64 * 1024 * 1024

    @property
    def state_folder(self) -> Path | None:
        """Where the state is, if any is kept."""
        if not self.keep_state:
            return None
        if self.state is None and self.socket is not None:
            return platformdirs.user_state_path("agentsched") / f"socket-{self.socket.name}"
        if self.state is None and self.port:
            return platformdirs.user_state_path("agentsched") / f"port-{self.port}"
        return self.state

    def __post_init__(self) -> None:
        if self.state is not None and not self.keep_state:
            raise ValueError("state names a folder, and keep_state says that none is kept: leave one out")
        if self.policy not in POLICY_NAMES:
            raise ValueError(f"there is no policy {self.policy!r}; there are: {', '.join(POLICY_NAMES)}")
        if unknown := sorted(self.no_care - RULES.keys()):
            raise ValueError(f"there is no rule {unknown[0]!r}; there are: {', '.join(RULES)}")


class EngineSettings(Section, frozen=True, kw_only=True):
    """The engine that the daemon starts and keeps running."""

    kind: Annotated[
        Literal["embedded", "simulated"], Meta(description="Which engine.", extra={"flag": "--engine"})
    ] = "embedded"
    model: Annotated[
        Path | None,
        Meta(
            description="Model folder: config.json, safetensors, tokenizer.json and a chat template, of the "
            "Llama, Mistral, Qwen2 or Qwen3 family. It is served under the folder's name. Without it a small "
            "model with random weights, named demo, is made on first use."
        ),
    ] = None
    kv_tokens: Annotated[int, Meta(description="Tokens whose KV the engine can hold.", ge=64)] = 60_000
    host_tokens: Annotated[
        int,
        Meta(
            description="Tokens whose KV is kept in host memory once the engine has no room for it, and "
            "copied back when its program returns: much sooner than it is computed again. Four times "
            "kv_tokens is a good start if memory allows. 0: KV without room is dropped.",
            ge=0,
        ),
    ] = 0
    scripts: Annotated[
        Path | None, Meta(description="Folder of recorded agents, served as models recorded/NAME.")
    ] = None
    core: Annotated[
        int | None,
        Meta(description="Confine the engine to this CPU core.", extra={"flag": "--engine-core"}),
    ] = None

    def __post_init__(self) -> None:
        usable = os.sched_getaffinity(0)
        if self.core is not None and self.core not in usable:
            raise ValueError(f"core {self.core} is not among those that we may use: {sorted(usable)}")
        if self.kind != "embedded" and (self.model or self.scripts):
            raise ValueError(f"model and scripts have no meaning for the {self.kind} engine")


class UpstreamServers(Section, frozen=True, kw_only=True):
    """Servers that are there already, in the place of an engine of our own."""

    urls: Annotated[
        tuple[str, ...],
        Meta(
            description="Schedule calls for these servers (SGLang, vLLM, any that speaks these APIs), and "
            "pass them on as they are. The environment's AGENTSCHED_UPSTREAM_API_KEY, if it is set, is sent "
            "to them in place of each client's key. What a server does not tell of itself may stand behind "
            "its URL: #priority,events=tcp://HOST:PORT (docs/engines-served.md).",
            extra={"flag": "--upstream"},
        ),
    ] = ()
    kv_tokens: Annotated[
        int | None,
        Meta(
            description="Tokens whose KV each of them can hold. Without it they are asked: SGLang and vLLM "
            "tell.",
            extra={"flag": "--upstream-kv-tokens"},
        ),
    ] = None
    fields: Annotated[
        bool,
        Meta(
            description="Add fields to requests, by which a server learns of what session, priority and "
            "tenant they are (docs/engines-served.md). Without it bodies pass as they are, and a stock "
            "server's level of service is the lower.",
            extra={"flag": "--upstream-fields"},
        ),
    ] = True
    silence_s: Annotated[
        float,
        Meta(
            description="Seconds in which not a byte comes from a server, after which a call has failed.",
            gt=0,
            extra={"flag": "--upstream-silence"},
        ),
    ] = 600.0

    def __post_init__(self) -> None:
        if self.kv_tokens is not None and self.kv_tokens < 64:
            raise ValueError(f"kv_tokens must be 64 or more, got {self.kv_tokens}")


class Telemetry(Section, frozen=True, kw_only=True):
    """Where traces go: spans of programs, calls and tools by OpenTelemetry."""

    otlp: Annotated[
        str | None,
        Meta(description="Base URL of a collector that takes OTLP over HTTP, as http://127.0.0.1:4318."),
    ] = None

    def __post_init__(self) -> None:
        if self.otlp is not None and not self.otlp.startswith(("http://", "https://")):
            raise ValueError(f"otlp is not a URL that begins with http:// or https://: {self.otlp!r}")


class Config(Section, frozen=True, kw_only=True):
    """The file, one attribute a table."""

    daemon: Settings = msgspec.field(default_factory=Settings)
    engine: EngineSettings = msgspec.field(default_factory=EngineSettings)
    upstream: UpstreamServers = msgspec.field(default_factory=UpstreamServers)
    telemetry: Telemetry = msgspec.field(default_factory=Telemetry)
