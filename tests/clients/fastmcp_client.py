"""Lets the fastmcp client call Tollbridge, with the checks of python_client.py; runs on fastmcp 2.x and 4.x.

Usage: fastmcp_client.py URL; the tokens stand in MCP_TOKEN and MCP_VIEWER_TOKEN.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

warnings.simplefilter("ignore")

import python_client as checks  # noqa: E402
from fastmcp import Client  # noqa: E402
from fastmcp.client.transports import StreamableHttpTransport  # noqa: E402


class Adapted:
    """A fastmcp client that is called as those of `mcp` are."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def list_tools(self) -> Any:
        return SimpleNamespace(tools=await self.client.list_tools())

    async def call_tool(self, name: str, arguments: dict[str, Any], progress_callback: Any = None) -> Any:
        handlers = {"progress_handler": progress_callback} if progress_callback else {}
        return await self.client.call_tool(name, arguments, raise_on_error=False, **handlers)


@asynccontextmanager
async def connected(url: str, token: str, _mode: str) -> AsyncIterator[Any]:
    """A connected client."""
    transport = StreamableHttpTransport(url, headers={"Authorization": f"Bearer {token}"})
    async with Client(transport) as client:
        yield Adapted(client)


if __name__ == "__main__":
    checks.LIBRARY = f"fastmcp {version('fastmcp')}"
    checks.connected = connected
    sys.exit(asyncio.run(checks.main(sys.argv[1], ["default"])))
