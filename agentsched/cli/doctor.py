"""``agentsched doctor``: what this machine offers, what is lost without the rest, how to get it.

Everything is looked at for real where that costs little: the sandbox rows run a command in one.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import click

from agentsched.cgroups import Capabilities, Sandbox, SandboxError, ToolSpec, isolation, sealing
from agentsched.cli.check import Check

# bits of linux/capability.h
_CAPABILITIES = (
    ("CAP_SYS_ADMIN", 21, "no mounts of one's own, and BPF only with CAP_BPF and CAP_PERFMON"),
    ("CAP_SYS_RESOURCE", 24, "PSI triggers cannot be faster than 2 s"),
    ("CAP_BPF", 39, "BPF programs only with CAP_SYS_ADMIN"),
)
_DELEGATE = "root, or `systemd-run --user --scope -p Delegate=yes agentsched ...`"


def _present(name: str, there: bool, found: str, lost: str, remedy: str) -> Check:
    return Check(name, "ok", found) if there else Check(name, "missing", "not found", lost, remedy)


def _sandbox() -> Iterator[Check]:
    try:
        with Sandbox.open("doctor") as sandbox:
            result = sandbox.run(ToolSpec(argv=[sys.executable, "-S", "-c", "x = bytearray(32 << 20)"]))
            can, refused = sandbox.capabilities, sandbox.refused
            controlled = sandbox.controlled.on
    except SandboxError as error:
        yield Check("sandbox", "missing", str(error), "tool calls cannot run", "see AGENTSCHED_BACKEND")
        return
    why = "; ".join(f"no {name}: {reason}" for name, reason in refused)
    found = (
        f"{can.backend}, tried: exit {result.exit_status}, {result.usage.peak_memory_bytes >> 20} MiB at most"
    )
    state = {"v2": "ok", "hybrid": "ok"}.get(can.backend, "partial") if can.whole_tree else "missing"
    yield Check(
        "sandbox", state, found, "; ".join(can.lost), "" if state == "ok" else f"{why}. Have {_DELEGATE}"
    )
    if refused:
        yield Check(
            "full cgroup v2",
            "missing",
            why,
            _lost_without_v2(can),
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    yield from _abilities(can)
    yield _present(
        "control of tool calls",
        controlled,
        "on, with the first call" + ("; memory by pausing at caps" if can.backend == "hybrid" else ""),
        "one tool can take the memory of all",
        "needs memory limits and freezing, and AGENTSCHED_CONTROL not off",
    )
    yield _present(
        "tools kept from control groups",
        sealing.possible(),
        "yes",
        "a tool that may write control group files can leave its leaf; one that may not cannot anyway",
        "run as root with CAP_SYS_ADMIN",
    )
    why = isolation.missing()
    yield Check(
        "isolation of the disk",
        "missing" if why else "ok",
        why or "yes, where it is asked for (--isolate)",
        "what a tool may write, it may fill" if why else "",
        isolation.REMEDY if why else "",
    )


def _lost_without_v2(can: Capabilities) -> str:
    if can.backend == "hybrid":
        return "memory.high throttling, memory.low protection, I/O control"
    return "what the sandbox row says"


def _abilities(can: Capabilities) -> Iterator[Check]:
    rows = (
        ("kill whole trees", can.whole_tree, "daemonised children may outlive their tool call"),
        ("freeze and thaw", can.freeze, "a tool cannot be paused under memory pressure"),
        ("memory limits", can.memory_limit, "one tool can take the memory of all"),
        ("CPU limits and weights", can.cpu_limit, "tools compete as the kernel's defaults have it"),
        ("process limits", can.pids_limit, "a fork bomb hits the whole machine"),
        ("peak memory", can.peak_memory, "a tool's peak is not known, so admission guesses"),
        ("pressure a leaf (PSI)", can.pressure, "stalls are only seen machine-wide or not at all"),
    )
    for name, able, lost in rows:
        yield _present(name, able, f"yes ({can.backend})", lost, f"cgroups: {_DELEGATE}")


def _privileges() -> Iterator[Check]:
    if not hasattr(os, "geteuid"):
        yield Check("privileges", "missing", platform.system(), "all that needs Linux", "run on Linux")
        return
    effective = _effective_capabilities()
    missing = [(name, lost) for name, bit, lost in _CAPABILITIES if not effective >> bit & 1]
    user = f"uid {os.geteuid()}"
    if not missing:
        yield Check("privileges", "ok", user)
    for name, lost in missing:
        yield Check("privileges", "partial", f"{user}, without {name}", lost, f"run with {name}")


def _effective_capabilities() -> int:
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("CapEff:")), "CapEff: 0")
    except FileNotFoundError:
        return 0
    return int(line.split()[1], 16)


def _kernel() -> Iterator[Check]:
    yield Check(
        "system",
        "ok",
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs",
    )
    yield _present(
        "pressure (PSI)",
        os.path.exists("/proc/pressure/memory"),
        "/proc/pressure",
        "memory and CPU pressure of the machine are not seen",
        "boot with psi=1",
    )
    tracefs = next(
        (d for d in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing") if os.path.isdir(f"{d}/events")), ""
    )
    yield _present(
        "tracefs",
        bool(tracefs),
        tracefs,
        "BPF tracepoints cannot attach",
        "mount -t tracefs tracefs /sys/kernel/tracing",
    )
    yield _present(
        "BTF",
        os.path.exists("/sys/kernel/btf/vmlinux"),
        "/sys/kernel/btf/vmlinux",
        "BPF programs cannot find kernel fields",
        "a kernel with CONFIG_DEBUG_INFO_BTF",
    )
    writable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    yield _present(
        "KVM", writable, "/dev/kvm", "test VMs run 30 to 60 times slower", "a host with (nested) KVM"
    )


def _bpf() -> Iterator[Check]:
    from agentsched.cgroups.bpf import headers, loading

    spec = importlib.util.find_spec("bcc")
    folders = list(spec.submodule_search_locations or []) if spec else []
    real = any(os.path.exists(f"{folder}/libbcc.py") for folder in folders)
    lost = "no BPF sensing: what tools do is polled, not pushed"
    remedy = "apt-get install python3-bpfcc (never from PyPI), and let the environment see it"
    if spec and not real:
        yield Check("bcc", "missing", "a different package named bcc", lost, f"pip uninstall bcc; {remedy}")
    else:
        yield _present("bcc", real, ", ".join(folders), lost, remedy)
    try:
        found, trouble = headers.found(), ""
    except SandboxError as error:
        found, trouble = "", str(error)
    yield _present("kernel headers", bool(found), found, "bcc cannot compile as it is", trouble)
    yield _programs(loading.PROGRAMS, lost)
    tool = shutil.which("bpftool")
    yield _present(
        "bpftool",
        tool is not None,
        tool or "",
        "loaded BPF programs cannot be listed",
        "apt-get install bpftool",
    )


def _programs(programs: Sequence[str], lost: str) -> Check:
    from agentsched.cgroups.bpf.loading import load

    began_s = time.monotonic()
    try:
        load(programs).cleanup()
    except SandboxError as error:
        return Check("BPF programs", "missing", "do not load", lost, str(error))
    took_s = time.monotonic() - began_s
    return Check("BPF programs", "ok", f"{', '.join(programs)}: tried, loaded in {took_s:.1f} s")


def _python() -> Iterator[Check]:
    yield Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")
    for package, lost, extra in (
        ("torch", "no embedded engine; SGLang, vLLM and the simulated engine work", "engine"),
        ("transformers", "no tokenizers and chat templates for the embedded engine", "engine"),
        ("minisweagent", "the demo has no agents to run", "demo"),
    ):
        there = importlib.util.find_spec(package) is not None
        yield _present(package, there, "importable", lost, f"pip install 'agentsched[{extra}]'")
    devices = glob.glob("/dev/nvidia[0-9]*") + glob.glob("/dev/kfd")
    yield _present(
        "GPU",
        bool(devices),
        ", ".join(devices),
        "the embedded engine computes on the CPU",
        "a machine with a GPU",
    )


def _folders() -> Iterator[Check]:
    from platformdirs import user_cache_dir

    for name, folder, lost in (
        ("working folder", os.getcwd(), "reports cannot be written to ./out"),
        ("temporary folder", tempfile.gettempdir(), "agents have no scratch copies of their repositories"),
        (
            "cache folder",
            user_cache_dir("agentsched"),
            "tokenizers and sources are made and fetched anew each time",
        ),
    ):
        nearest = folder
        while not os.path.exists(nearest):
            nearest = os.path.dirname(nearest)
        free = shutil.disk_usage(nearest).free / 2**30
        writable = os.access(nearest, os.W_OK)
        yield _present(name, writable, f"{folder}, {free:.0f} GiB free", lost, f"make {folder} writable")


_SECTIONS: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
    ("Machine", _kernel),
    ("Sandboxes", _sandbox),
    ("Privileges", _privileges),
    ("BPF", _bpf),
    ("Python and engines", _python),
    ("Folders", _folders),
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
@click.option(
    "--upstream",
    "urls",
    multiple=True,
    metavar="URL",
    help="Also look at this server (SGLang, vLLM, ...), as for serve --upstream: what service would it give?",
)
def doctor(as_json: bool, urls: tuple[str, ...]) -> None:
    """Print what this machine offers, and for what is missing: what is lost and how to get it."""
    sections = [(title, list(look())) for title, look in _SECTIONS]
    if urls:
        from agentsched.cli.doctor_servers import servers  # needs more of the package than a bare machine

        sections.append(("Servers", list(servers(urls))))
    if as_json:
        rows = [{"section": title, **check._asdict()} for title, checks in sections for check in checks]
        click.echo(json.dumps({"checks": rows}, indent=2))
        return
    _print(sections)


def _print(sections: list[tuple[str, list[Check]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "partial": "yellow", "missing": "red"}
    table = Table(show_lines=False, pad_edge=False, box=None)
    for heading in ("", "state", "found", "lost without it, and how to get it"):
        table.add_column(heading, overflow="fold")
    for title, checks in sections:
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for check in checks:
            advice = ". ".join(part for part in (check.lost, check.remedy) if part)
            state = Text(check.state, style=styles[check.state])
            table.add_row(Text(f"  {check.name}"), state, Text(check.found), Text(advice))
    Console().print(table)
