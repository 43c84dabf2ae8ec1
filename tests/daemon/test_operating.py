"""What operators get: traces, a dashboard and a unit."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentsched.core import events as ev
from agentsched.daemon.spans import Spans
from tests.core.harness import Harness
from tests.daemon.serving import chat, served

OPERATING = files("agentsched.daemon.operating")


def spans_of(*events: ev.AnyEvent) -> dict[str, Any]:
    """The spans, by name, of what a core was told at one second each; the daemon ends after it."""
    exporter = InMemorySpanExporter()
    spans, harness = Spans(SimpleSpanProcessor(exporter), "model"), Harness("agentsched")
    for event in events:
        decided = harness.post(event, after_s=1.0)
        spans.observe(harness.now, event, decided)
    spans.close()
    return {span.name: span for span in exporter.get_finished_spans()}


CALL = (
    ev.ProgramOpened(program="a", tenant="t"),
    ev.CallArrived(call="c", program="a", prompt_tokens=100, max_output_tokens=10),
    ev.CallStarted(call="c", cached_tokens=40),
    ev.FirstToken(call="c"),
    ev.CallFinished(call="c", prompt_tokens=100, cached_tokens=40, output_tokens=5),
    ev.ToolStarted(tool_call="t1", program="a", tool="bash", command="pytest"),
    ev.ToolFinished(tool_call="t1", program="a", exit_status=137, wall_s=1, cpu_s=0.5, peak_memory_bytes=7),
    ev.ProgramOpened(program="b", parent="a"),
    ev.ProgramClosed(program="b"),
    ev.ProgramClosed(program="a"),
)


def test_a_program_is_a_trace_and_its_calls_and_tools_are_spans_in_it() -> None:
    spans = spans_of(*CALL)
    program, call, tool = spans["invoke_agent a"], spans["chat model"], spans["execute_tool bash"]
    assert {s.context.trace_id for s in spans.values()} == {program.context.trace_id}
    for child in (call, tool, spans["invoke_agent b"]):
        assert child.parent.span_id == program.context.span_id
    assert (call.end_time - call.start_time) / 1e9 == pytest.approx(3.0)
    assert call.attributes["gen_ai.usage.input_tokens"] == 100
    assert call.attributes["gen_ai.usage.cache_read.input_tokens"] == 40
    assert call.attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(2.0)
    assert tool.attributes["error.type"] == "killed"
    admitted = [event for event in program.events if event.name == "agentsched.admit"]
    assert "tokens" in admitted[0].attributes["agentsched.reason"]


def test_what_is_open_at_the_end_is_sent_too() -> None:
    assert set(spans_of(*CALL[:3])) == {"invoke_agent a", "chat model"}


def test_an_aborted_call_is_an_error() -> None:
    spans = spans_of(*CALL[:2], ev.CallAborted(call="c", reason="the client went away"))
    assert spans["chat model"].status.description == "the client went away"


@asynccontextmanager
async def collector(found: asyncio.Queue[ExportTraceServiceRequest]) -> AsyncIterator[str]:
    async def take(request: web.Request) -> web.Response:
        found.put_nowait(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def ask_daemon(*options: str) -> int:
    """Start a daemon, make one call of program p, stop it; its exit status."""
    command = [sys.executable, "-m", "agentsched", "serve", "--engine", "simulated", "--port", "0"]
    daemon = await asyncio.create_subprocess_exec(*command, *options, stdout=asyncio.subprocess.PIPE)
    assert daemon.stdout is not None
    url = (await daemon.stdout.readline()).split()[3].decode()
    headers = {"x-agentsched-program": "p"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{url}/v1/chat/completions", json=chat("/say yes")) as answer,
    ):
        assert answer.status == 200
    daemon.terminate()
    return await daemon.wait()


async def test_a_daemon_sends_its_traces_to_a_collector() -> None:
    found: asyncio.Queue[ExportTraceServiceRequest] = asyncio.Queue()
    async with collector(found) as url:
        assert await ask_daemon("--otlp", url) == 0
    sent = [
        (resource.resource.attributes, span.name)
        for _ in range(found.qsize())
        for resource in found.get_nowait().resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {name for _, name in sent} == {"invoke_agent p", "chat simulated"}
    assert any(a.key == "service.name" and a.value.string_value == "agentsched" for a in sent[0][0])


async def test_a_collector_that_is_not_there_holds_up_nobody() -> None:
    async with asyncio.timeout(30):
        assert await ask_daemon("--otlp", "http://127.0.0.1:9") == 0


async def test_every_metric_on_the_dashboard_is_one_that_a_daemon_has() -> None:
    dashboard = json.loads(OPERATING.joinpath("grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) > 14
    async with served() as served_:
        await served_.chat("/say yes", program="a")
        async with served_.http.get(served_.url + "/metrics") as answer:
            page = await answer.text()
    for expression in asked:
        for name in re.findall(r"agentsched_\w+", expression):
            assert re.search(rf"^(# TYPE )?{name.removesuffix('_bucket')}\b", page, re.MULTILINE), name
        for kind in re.findall(r'(?:kind|state|phase)="(\w+)"', expression):
            assert f'"{kind}"' in page, expression


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "agentsched.service"
    unit.write_text(OPERATING.joinpath("agentsched.service").read_text())
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert "agentsched.service" not in checked.stderr, checked.stderr
