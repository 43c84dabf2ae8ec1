"""What the command ``agentsched`` lists: finds the subcommand, and imports only that one."""

from __future__ import annotations

from importlib import import_module

import click

from agentsched import __version__

# The one-line helps stand here and not only in the subcommands, so that `agentsched --help` need
# not import torch and aiohttp to list them.
COMMANDS = {
    "demo": "Run real agents with a baseline policy and with ours, and compare.",
    "serve": "Serve an OpenAI-compatible API that schedules agent programs.",
    "config": "Write, check and explain the configuration file.",
    "key": "Make API keys for tenants and admins.",
    "run": "Run one command in a sandbox of its own.",
    "mcp-run": "Run a server of tools (MCP) in a sandbox, and report its calls.",
    "wrap": "Run an agent as it is, each command of it in a sandbox of its own.",
    "simulate": "Play traces of agents through policies, in virtual time.",
    "trace": "Make a trace for the simulator from a daemon's event log.",
    "fit": "Fit a cost profile for the simulator by measuring an engine.",
    "replay": "Feed event logs through the core: does it still decide the same?",
    "top": "Watch a daemon in the terminal: programs, KV, decisions.",
    "report": "Make one HTML file of a recorded period, from event logs.",
    "graph": "Export or draw what programs did, or tend to do, from a log.",
    "doctor": "Print what this machine offers, and what is lost without the rest.",
    "cleanup": "Remove what a killed run left behind.",
}

# \b keeps click from rewrapping the paragraph that follows
EPILOG = """\b
Examples:
  agentsched doctor
  agentsched demo
  agentsched serve
  agentsched run -- pytest -q
  agentsched simulate gen:saga-swe --kv-tokens 450000 --concurrency 16

'agentsched COMMAND --help' tells more.
"""


class LazyGroup(click.Group):
    """A group whose subcommand NAME is ``agentsched.cli.NAME:NAME``, imported when it is used; a hyphen
    stands for an underscore."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(import_module(f"agentsched.cli.{name}"), name)
        assert isinstance(command, click.Command), f"agentsched.cli.{name}.{name} is no click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command '{args[0]}'; there are: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="agentsched %(version)s")
def cli() -> None:
    """Schedules LLM agents as whole programs: the KV cache of the engine and the tools on the host."""
