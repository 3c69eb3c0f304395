"""Plays the Autobahn cases (RFC 6455) against an echo and prints one JSON line per case.

Runs inside the environment `conformance` (`requirements.txt`). `play URL [pattern…]` is the suite; `echo` serves one
with the library `websockets`, prints its port, and stands behind HAProxy. Does not judge (`run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

# 9.1.4 to 9.1.6, 9.2.4 to 9.2.6, and the whole of 9.3 and 9.4 send messages of 4 MiB and more; the gateway takes 1 MiB.
TOO_LARGE = ["9.1.4", "9.1.5", "9.1.6", "9.2.4", "9.2.5", "9.2.6", "9.3.*", "9.4.*"]
# permessage-deflate (RFC 7692) is not offered.
NOT_OFFERED = ["12.*", "13.*"]


async def play(url: str, only: list[str]) -> None:
    """Plays the cases."""
    from kosoku import FailureError, run_fuzzingclient

    try:
        results = await run_fuzzingclient(url, only or None, TOO_LARGE + NOT_OFFERED, concurrency=4)
    except FailureError as failure:
        results = failure.results
    for result in results:
        line = {
            "case": result.case_id,
            "passed": result.passed,
            "behavior": result.behavior.value,
            "close": result.behavior_close.value,
            "why": f"{result.result} {result.result_close}",
        }
        print(json.dumps(line), flush=True)


async def echo() -> None:
    """Echoes until killed."""
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosed

    async def repeat(socket) -> None:
        # Broken connections are what the suite is about.
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                await socket.send(message)

    async with serve(repeat, "127.0.0.1", 0, compression=None, max_size=1 << 20) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(echo() if sys.argv[1] == "echo" else play(sys.argv[2], sys.argv[3:]))
