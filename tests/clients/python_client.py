"""Lets the official Python MCP client call Tollbridge; runs unchanged on `mcp` 1.x and 2.x.

Prints one line per check, `ok <what>` or `FAILED <what>: <why>`; the status is 1 when a check failed.
Usage: python_client.py URL; the tokens stand in MCP_TOKEN (an operator) and MCP_VIEWER_TOKEN.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

MAJOR = int(version("mcp").split(".")[0])
LIBRARY = f"python mcp {version('mcp')}"
CALL_DEADLINE_S = 60


@asynccontextmanager
async def connected(url: str, token: str, mode: str) -> AsyncIterator[Any]:
    """A connected client: a 1.x session, or a 2.x client in the era that `mode` names."""
    headers = {"Authorization": f"Bearer {token}"}
    if MAJOR == 1:
        from mcp import ClientSession
        from mcp.client.streamable_http import streamablehttp_client

        async with streamablehttp_client(url, headers=headers) as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                yield session
    else:
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        async with httpx2.AsyncClient(headers=headers, timeout=CALL_DEADLINE_S) as http:
            async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
                yield client


def text_of(result: Any) -> str:
    """The text of a tool result."""
    return "\n".join(part.text for part in result.content if part.type == "text")


def is_error(result: Any) -> bool:
    """Whether a tool result is an error; the two majors spell it differently."""
    return bool(getattr(result, "is_error", None) or getattr(result, "isError", None))


async def lists_tools(client: Any) -> None:
    names = {tool.name for tool in (await client.list_tools()).tools}
    assert {"run_agent", "list_agents", "search_knowledge"} <= names, names


async def runs_with_progress(client: Any) -> None:
    seen: list[str | None] = []

    async def progress(_done: float, _total: float | None, message: str | None) -> None:
        seen.append(message)

    arguments = {"agent": "researcher-slow", "message": "go"}
    result = await client.call_tool("run_agent", arguments, progress_callback=progress)
    assert not is_error(result) and "tick" in text_of(result), text_of(result)
    assert seen, "no progress"


async def searches(client: Any) -> None:
    result = await client.call_tool("search_knowledge", {"query": "when does the tollbridge open"})
    assert "opens at dawn" in text_of(result), text_of(result)


def field(result: Any, name: str) -> str:
    """A field of the lines that a run's result ends with."""
    lines = [line.removeprefix(f"{name}: ") for line in text_of(result).splitlines() if line.startswith(f"{name}: ")]
    assert lines, text_of(result)
    return lines[-1]


async def cancels(client: Any) -> None:
    arguments = {"agent": "researcher-slow", "message": "go", "background": True}
    started = await client.call_tool("run_agent", arguments)
    run = {"run": field(started, "run")}
    cancelled = await client.call_tool("cancel_run", run)
    assert not is_error(cancelled), text_of(cancelled)
    ended = await client.call_tool("get_run", {**run, "wait_s": 20})
    assert field(ended, "status") == "cancelled", text_of(ended)


async def asks_by_name(client: Any) -> None:
    """At the address of the toolset `ask` each agent is a tool."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert "Repeats what you say." in tools["ask_assistant"].description, sorted(tools)
    result = await client.call_tool("ask_assistant", {"message": "hello by name"})
    assert not is_error(result) and "hello by name" in text_of(result), text_of(result)


async def is_refused(client: Any) -> None:
    names = {tool.name for tool in (await client.list_tools()).tools}
    assert "run_agent" not in names, names
    try:
        result = await client.call_tool("run_agent", {"agent": "assistant", "message": "let me in"})
    except Exception as error:  # a protocol error is a refusal too; which class depends on the major
        assert "let me in" not in str(error), error
        return
    assert is_error(result) and "echo:" not in text_of(result), text_of(result)


async def check(
    what: str, url: str, token: str, mode: str, test: Callable[[Any], Awaitable[None]], shown: str = ""
) -> bool:
    """Connects, runs one test, prints its line."""

    async def connect_and_test() -> None:
        async with connected(url, token, mode) as client:
            await test(client)

    return await reported(f"{LIBRARY} ({shown or mode}): {what}", connect_and_test())


async def reported(name: str, work: Awaitable[None]) -> bool:
    """Does the work under a deadline and prints its line."""
    try:
        async with asyncio.timeout(CALL_DEADLINE_S) if sys.version_info >= (3, 11) else no_deadline():
            await work
    except BaseException as error:
        print(f"FAILED {name}: {innermost(error)}", flush=True)
        return False
    print(f"ok {name}", flush=True)
    return True


def innermost(error: BaseException) -> str:
    """What went wrong, out of the groups that task groups wrap it in."""
    while getattr(error, "exceptions", None):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


@asynccontextmanager
async def no_deadline() -> AsyncIterator[None]:
    """Python 3.10 has no `asyncio.timeout`; run.py ends a client that hangs."""
    yield


async def main(url: str, modes: list[str]) -> int:
    operator, viewer = os.environ["MCP_TOKEN"], os.environ["MCP_VIEWER_TOKEN"]
    good = True
    for mode in modes:
        good &= await check("lists tools", url, operator, mode, lists_tools)
        good &= await check("runs an agent with progress", url, operator, mode, runs_with_progress)
        good &= await check("searches knowledge", url, operator, mode, searches)
        good &= await check("cancels a run", url, operator, mode, cancels)
        good &= await check("asks an agent by name", f"{url}/x/ask", operator, mode, asks_by_name)
        good &= await check("is refused as a viewer", url, viewer, mode, is_refused)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], ["session"] if MAJOR == 1 else ["auto", "legacy"])))
