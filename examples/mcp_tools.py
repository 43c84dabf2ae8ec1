"""A server of tools that speaks MCP: `agentsched mcp-run` runs it in a sandbox, and reports its calls.

    pip install 'agentsched[mcp]'
    python examples/mcp_tools.py

It speaks to the daemon at AGENTSCHED_URL if that is set, else to one in this process. For a client that is
told of servers by a file, as Claude Code is, only the command changes: "command": "agentsched",
"args": ["mcp-run", "--memory", "1G", "--", "python", "server.py"].
"""

from __future__ import annotations

import asyncio
import os
import sys

from local_daemon import local_daemon
from mcp import Client, StdioServerParameters

from agentsched.sdk import program
from agentsched.sdk.mcp import call_meta

AGENTSCHED = [sys.executable, "-c", "from agentsched.cli.main import main; main()"]


def serve() -> None:
    """The server: nothing in it knows of agentsched."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    server = MCPServer("library")

    @server.tool()
    def look_up(key: str) -> str:
        """Look a key up."""
        return f"the value of {key}"

    @server.tool()
    def burn(name: str) -> str:
        """Fails."""
        raise ToolError(f"{name} does not burn")

    server.run()


async def main() -> None:
    with local_daemon({}):
        command, *words = [*AGENTSCHED, "mcp-run", "--memory", "1G", "--", sys.executable, __file__, "serve"]
        parameters = StdioServerParameters(command=command, args=words, env=dict(os.environ))
        async with Client(parameters) as client:
            with program("reader"):
                for tool, arguments in (("look_up", {"key": "a"}), ("burn", {"name": "a book"})):
                    result = await client.call_tool(tool, arguments, meta=call_meta("memory:64M"))
                    print(tool, "failed:" if result.is_error else "says:", result.content[0].text)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        asyncio.run(main())
