"""Says which operation the example AgentOS would run for raw requests, without a network and without running it.

Reads JSON lines `["METHOD", "raw target"]` on stdin until it is closed, then writes one JSON line each: `null` when no
route takes the path, else `[template, parameters, taken]`, where `taken` says whether the route has the method.
The decoding is uvicorn's, the trailing slashes are cut by AgentOS's own middleware, and the routes are the ones of its
FastAPI application; only the last step, running the endpoint, is replaced.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

os.environ["LOG"] = "error"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "agentos"))
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import app as example
import fastapi.routing
import starlette.routing
from agno.os.middleware.trailing_slash import TrailingSlashMiddleware
from starlette.requests import Request


class Selected(Exception):
    """The route that would run."""


async def select(self: Any, scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Stands in for `Route.handle`."""
    context = getattr(fastapi.routing, "_get_scope_effective_route_context", lambda scope: None)(scope)
    template = getattr(context, "path", None) or self.path
    methods = getattr(context, "methods", None) or self.methods
    raise Selected([template, scope.get("path_params", {}), scope["method"] in methods])


async def mounted(self: Any, scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Stands in for `Mount.handle`: a mounted application takes everything below it."""
    raise Selected([self.path + "/{path:path}", scope.get("path_params", {}), True])


async def route(web: Any, slashes: TrailingSlashMiddleware, method: str, target: str) -> list[Any] | None:
    """Asks the application's router, as uvicorn would."""
    raw_path = target.partition("?")[0]
    try:
        path = unquote(raw_path.encode("ascii").decode("ascii"))
    except UnicodeEncodeError:
        return None
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": "", "path": path,
        "raw_path": raw_path.encode("ascii"), "query_string": b"", "headers": [(b"host", b"localhost")], "app": web,
    }

    async def go_on(request: Request) -> None:
        await web.router(scope, nothing, nothing)

    try:
        await slashes.dispatch(Request(scope), go_on)
    except Selected as selected:
        return selected.args[0]
    except starlette.routing.HTTPException as refused:
        assert refused.status_code == 404, refused
    return None


async def nothing(*_: Any) -> dict[str, Any]:
    """Neither body nor answer matters."""
    return {"type": "http.disconnect"}


async def main() -> None:
    """Answers every line."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DB"] = str(Path(folder) / "agentos.db")
        web = example.build(1)
        slashes = TrailingSlashMiddleware(web)
        starlette.routing.Route.handle = select
        fastapi.routing.APIRoute.handle = select
        starlette.routing.Mount.handle = mounted
        for line in sys.stdin:
            method, target = json.loads(line)
            answers.write(json.dumps(await route(web, slashes, method, target)) + "\n")
        answers.flush()


asyncio.run(main())
