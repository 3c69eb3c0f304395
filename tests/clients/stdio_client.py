"""Lets the official Python MCP client start `tollbridge mcp` and call through it; runs unchanged on `mcp` 1.x and 2.x.

Prints one line per check, as python_client.py does, whose checks are played here over the standard streams.
Usage: stdio_client.py URL; the binary stands in TOLLBRIDGE_BIN, the tokens in MCP_TOKEN and MCP_VIEWER_TOKEN.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import python_client as over_http

NOWHERE = "http://127.0.0.1:1/mcp"


@asynccontextmanager
async def connected(url: str, token: str, mode: str) -> AsyncIterator[Any]:
    """A client that has started a bridge to `url`, which finds its token in a file."""
    from mcp import StdioServerParameters
    from mcp.client.stdio import stdio_client

    with tempfile.NamedTemporaryFile("w", prefix="token-") as file:
        file.write(token)
        file.flush()
        arguments = ["mcp", "--url", url, "--token-file", file.name]
        server = StdioServerParameters(command=os.environ["TOLLBRIDGE_BIN"], args=arguments)
        with Path(os.devnull).open("w") as errors:
            if over_http.MAJOR == 1:
                from mcp import ClientSession

                async with stdio_client(server, errlog=errors) as (read, write):
                    async with ClientSession(read, write) as session:
                        await session.initialize()
                        yield session
            else:
                from mcp import Client

                async with Client(stdio_client(server, errlog=errors), mode=mode) as client:
                    yield client


async def is_told_why(url: str, token: str, mode: str, wanted: str) -> None:
    """Connects, which has to fail with a text that holds what is wanted."""
    try:
        async with connected(url, token, mode) as client:
            await client.list_tools()
    except BaseException as error:
        assert wanted in over_http.innermost(error), over_http.innermost(error)
        return
    raise AssertionError("nothing was refused")


async def main(url: str) -> int:
    over_http.connected = connected
    operator, viewer = os.environ["MCP_TOKEN"], os.environ["MCP_VIEWER_TOKEN"]
    good = True
    for mode in ["session"] if over_http.MAJOR == 1 else ["auto", "legacy"]:
        stdio = f"stdio, {mode}"
        for what, token, test in [
            ("lists tools", operator, over_http.lists_tools),
            ("runs an agent with progress", operator, over_http.runs_with_progress),
            ("searches knowledge", operator, over_http.searches),
            ("cancels a run", operator, over_http.cancels),
            ("is refused as a viewer", viewer, over_http.is_refused),
        ]:
            good &= await over_http.check(what, url, token, mode, test, shown=stdio)
        for what, place, token, wanted in [
            ("an unreachable server is named", NOWHERE, operator, "cannot be reached"),
            ("a refused token is named", url, "nobody", "refused the token"),
            ("a wrong address is named", f"{url}/wrong", operator, "no MCP endpoint"),
        ]:
            async def told(place: str = place, token: str = token, wanted: str = wanted) -> None:
                await is_told_why(place, token, mode, wanted)

            good &= await over_http.reported(f"{over_http.LIBRARY} ({stdio}): {what}", told())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
