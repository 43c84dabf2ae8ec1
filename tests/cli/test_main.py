"""The command line's frame: what it lists, loads, and says when something is missing or stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import click
import pytest

import agentsched
from agentsched.cli import commands
from agentsched.cli import main as frame


def run_main(*args: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        frame.main(list(args))
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def install_demo(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Puts a body in place of the demo's, so that the frame is tested and not the demo."""

    def install(body: Callable[[], object]) -> None:
        module = ModuleType("agentsched.cli.demo")
        module.__dict__["demo"] = click.Command("demo", callback=body)
        monkeypatch.setitem(sys.modules, "agentsched.cli.demo", module)

    return install


def test_help_lists_every_command_and_imports_none_of_them() -> None:
    code = (
        "import sys; from agentsched.cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: print([m for m in sys.modules if m.split('.')[0] in "
        "{'torch', 'aiohttp', 'transformers', 'networkx', 'plotly', 'rich'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, help_text in commands.COMMANDS.items():
        assert name in done.stdout
        assert help_text in done.stdout
    assert "Examples:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_fits_a_narrow_terminal() -> None:
    longest = max(map(len, commands.COMMANDS))
    assert all(longest + len(text) < 75 for text in commands.COMMANDS.values())


def test_version_is_the_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agentsched", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"agentsched {agentsched.__version__}\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_listed_command_loads(name: str) -> None:
    command = commands.cli.get_command(click.Context(commands.cli), name)
    assert command is not None
    assert command.name == name


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_tells_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(name, "--help") == 0
    assert f"Usage: agentsched {name}" in capsys.readouterr().out


def test_an_unknown_command_is_wrong_usage_and_names_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main("sevre") == 2
    message = capsys.readouterr().err
    assert "no command 'sevre'" in message
    assert "serve" in message


def test_a_returned_integer_is_the_exit_status(install_demo: Callable[..., None]) -> None:
    install_demo(lambda: 7)
    assert run_main("demo") == 7


def test_no_result_means_success(install_demo: Callable[..., None]) -> None:
    install_demo(lambda: None)
    assert run_main("demo") == 0


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("plotly.graph_objects", "pip install 'agentsched[demo]'"),
        ("torch", "pip install 'agentsched[demo]'"),
        ("bcc", "python3-bpfcc"),
    ],
)
def test_a_missing_optional_package_is_named_with_what_installs_it(
    module: str, advice: str, install_demo: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def needs_it() -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    install_demo(needs_it)
    assert run_main("demo") == 1
    message = capsys.readouterr().err
    assert module.split(".")[0] in message
    assert advice in message
    assert "Traceback" not in message


def test_other_commands_need_only_the_extra_that_brings_the_package() -> None:
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert "agentsched[engine]" in str(frame.missing_package(error, ["serve", "--port", "0"]))


def test_a_missing_module_of_our_own_is_a_bug_and_stays_loud(install_demo: Callable[..., None]) -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'agentsched.nowhere'", name="agentsched.nowhere")

    install_demo(broken)
    with pytest.raises(ModuleNotFoundError, match=r"agentsched\.nowhere"):
        frame.main(["demo"])


def test_an_interrupt_ends_it_with_130_and_no_traceback() -> None:
    code = (
        "import click, sys, types; from agentsched.cli.main import main\n"
        "module = types.ModuleType('agentsched.cli.demo')\n"
        "def wait(): print('ready', flush=True); sys.stdin.read()\n"
        "module.demo = click.Command('demo', callback=wait)\n"
        "sys.modules['agentsched.cli.demo'] = module\n"
        "main(['demo'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
