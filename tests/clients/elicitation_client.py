"""Lets the official Python MCP client ask its user about a paused run; runs unchanged on `mcp` 1.x and 2.x.

Prints one line per check, `ok <what>` or `FAILED <what>: <why>`; the status is 1 when a check failed.
Usage: elicitation_client.py URL; the token of an operator stands in MCP_TOKEN.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from mcp.types import ElicitResult
from python_client import CALL_DEADLINE_S, MAJOR, is_error, text_of


@asynccontextmanager
async def connected(url: str, token: str, mode: str, answer: Any) -> AsyncIterator[Any]:
    """A connected client that answers questions with `answer`."""
    headers = {"Authorization": f"Bearer {token}"}
    if MAJOR == 1:
        from mcp import ClientSession
        from mcp.client.streamable_http import streamablehttp_client

        async with streamablehttp_client(url, headers=headers) as (read, write, _):
            async with ClientSession(read, write, elicitation_callback=answer) as session:
                await session.initialize()
                yield session
    else:
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        async with httpx2.AsyncClient(headers=headers, timeout=CALL_DEADLINE_S) as http:
            transport = streamable_http_client(url, http_client=http)
            async with Client(transport, mode=mode, elicitation_callback=answer) as client:
                yield client


async def asks(url: str, token: str, mode: str, action: str, decision: str, status: str) -> None:
    """Runs an agent that pauses; the user does as told, and the run ends as expected."""
    seen: list[str] = []

    async def answer(_context: Any, params: Any) -> ElicitResult:
        seen.append(params.message)
        content = {"decision": decision} if action == "accept" else None
        return ElicitResult(action=action, content=content)

    async with connected(url, token, mode, answer) as client:
        result = await client.call_tool("run_agent", {"agent": "mailer", "message": "mail bob"})
    assert len(seen) == 1 and "bob" in seen[0], seen
    assert not is_error(result) and f"status: {status}" in text_of(result), text_of(result)


async def main(url: str) -> int:
    """Plays every answer in every mode of the library."""
    token, good = os.environ["MCP_TOKEN"], True
    answers = [("accept", "approve", "completed"), ("accept", "reject", "completed"), ("decline", "", "completed")]
    answers.append(("cancel", "", "paused"))
    for mode in ["session"] if MAJOR == 1 else ["auto", "legacy"]:
        for action, decision, status in answers:
            name = f"python mcp {version('mcp')} ({mode}): is asked, answers {action} {decision}".rstrip()
            try:
                await asyncio.wait_for(asks(url, token, mode, action, decision, status), CALL_DEADLINE_S)
            except BaseException as error:
                while getattr(error, "exceptions", None):
                    error = error.exceptions[0]
                print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
                good = False
            else:
                print(f"ok {name}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
