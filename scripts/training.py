"""Puts a gateway to work for a profile of it: every kind of call that is made often, over and over, through both doors.

Owns the mix of calls, what AgentOS would answer to them, and the check that each is answered as it should be: a profile of
refusals would be worthless. Does not build and does not measure (`release`, `benches/`). Invariant: what it started has
ended when `train` returns, the gateway by SIGTERM, so that it writes its profile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY = "training-training-training-training-1"
MODERN, LEGACY = "2026-07-28", "2025-11-25"
CONNECTIONS = 32
# A connection is closed after so many calls and opened anew.
CALLS_EACH = 100
SECONDS = 60.0
# Long enough that every kind of call is made (`make test`).
TRIAL_S = 5.0
PATIENCE_S = 20.0
EVENTS = 12

CONFIG = """
[server]
listen = "127.0.0.1:{port}"
public_url = "http://127.0.0.1:{port}"
secret = {{ env = "TRAINING_KEY" }}
[admin]
listen = "127.0.0.1:{admin}"
[[clusters]]
name = "main"
endpoints = ["http://127.0.0.1:{upstream}"]
credential = {{ mint = {{ algorithm = "HS256", key = {{ env = "TRAINING_KEY" }}, audience = "training" }} }}
knowledge = "exclusive"
[[identity.issuers]]
issuer = "training"
audiences = ["tollbridge"]
algorithms = ["HS256"]
key = {{ env = "TRAINING_KEY" }}
[policy]
dir = "{policies}"
[plans.wide]
requests = {{ per_second = 1_000_000, burst = 1_000_000 }}
concurrent_runs = 100_000
tokens = {{ per_month = 1_000_000_000_000 }}
[tenants.acme]
plan = "wide"
[quota]
default_plan = "wide"
flood = {{ per_second = 1_000_000, burst = 1_000_000 }}
[[cache.rules]]
operation = "get_agents"
ttl = "1h"
[telemetry]
access_log = {{ file = "access.jsonl" }}
audit_log = {{ file = "audit.jsonl" }}
"""


class TrainingError(Exception):
    """The gateway could not be put to work; the text says at what."""


# --- AgentOS, as far as these calls see it --------------------------------------------------------------------------


def answer(head: str, body: bytes) -> bytes:
    """What AgentOS says to a request."""
    method, target, _ = head.split(" ", 2)
    path = target.split("?")[0]
    if method == "POST" and path.endswith("/runs"):
        return run(b"stream=false" not in body and b'name="stream"\r\n\r\nfalse' not in body)
    page = {"page": 1, "limit": 20, "total_pages": 1, "total_count": 8}
    if path in ("/agents", "/teams", "/workflows"):
        kind = path[1:-1]
        return plain([{"id": f"{kind}-{n}", "name": f"{kind} {n}", "description": "one of four"} for n in range(4)])
    if path == "/memories":
        rows = [{"memory_id": f"m{n}", "memory": "a small thing to remember", "user_id": "acme~alice"} for n in range(8)]
        return plain({"data": rows, "meta": page})
    if path == "/sessions":
        rows = [{"session_id": f"s{n}", "session_name": "a talk", "user_id": "acme~alice"} for n in range(8)]
        return plain({"data": rows, "meta": page})
    return plain({})


def run(streamed: bool) -> bytes:
    """A run of a few events, whole or as a stream."""
    done = {"event": "RunCompleted", "run_id": "r", "session_id": "s", "content": "a short answer", "status": "COMPLETED",
            "metrics": {"input_tokens": 12, "output_tokens": 34, "total_tokens": 46}}
    if not streamed:
        return plain(done)
    events = [{"event": "RunStarted", "run_id": "r", "session_id": "s"}]
    events += [{"event": "RunContent", "run_id": "r", "session_id": "s", "content": f"word {n} "} for n in range(EVENTS)]
    text = "".join(chunk(f"event: {event['event']}\ndata: {json.dumps(event)}\n\n") for event in [*events, done])
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return f"{head}{text}0\r\n\r\n".encode()


def chunk(text: str) -> str:
    return f"{len(text.encode()):x}\r\n{text}\r\n"


def plain(value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def serve() -> None:
    """Answers as AgentOS does; says first on which port."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head, body = await message(reader)
                writer.write(answer(head, body))
                await writer.drain()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def message(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Reads one HTTP/1.1 message with its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if "transfer-encoding" not in fields:
        return head, await reader.readexactly(int(fields.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return head, body


# --- the calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A request, and how it has to be answered."""

    request: bytes
    status: int = 200
    holds: bytes = b""


def calls(token: str, viewer: str) -> list[Call]:
    """The mix: mostly reads and runs, some of everything else."""
    form = "application/x-www-form-urlencoded"
    file = (
        '--b\r\nContent-Disposition: form-data; name="message"\r\n\r\nread this\r\n--b\r\nContent-Disposition: form-data;'
        ' name="stream"\r\n\r\nfalse\r\n--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n'
        "Content-Type: text/plain\r\n\r\n" + "a line of text\n" * 300 + "\r\n--b--\r\n"
    )
    reads = [
        *[Call(request("GET", "/memories", token), holds=b"a small thing")] * 12,
        *[Call(request("GET", "/agents", token), holds=b"agent-3")] * 6,
        *[Call(request("GET", "/sessions?type=agent&limit=20", token), holds=b"a talk")] * 4,
        Call(request("GET", "/teams", token), holds=b"team-3"),
        Call(request("GET", "/memories", ""), 401),
        Call(request("GET", "/nothing", token), 404),
        Call(request("POST", "/agents/agent-1/runs", viewer, form, "message=hello"), 403),
    ]
    runs = []
    for kind, count in (("agents", 4), ("teams", 2), ("workflows", 2)):
        path = f"/{kind}/{kind[:-1]}-1/runs"
        body = "message=hello+there&stream="
        runs += [Call(request("POST", path, token, form, f"{body}true"), holds=b"RunCompleted")] * count
        runs += [Call(request("POST", path, token, form, f"{body}false"), holds=b"a short answer")]
    runs.append(Call(request("POST", "/agents/agent-1/runs", token, "multipart/form-data; boundary=b", file)))
    arguments = {"kind": "agent", "agent": "agent-1", "message": "hello there"}
    tools = [
        Call(tool(token, "tools/list"), holds=b"run_agent"),
        Call(tool(token, "tools/call", "list_agents", {}), holds=b"agent-3"),
        *[Call(tool(token, "tools/call", "run_agent", arguments), holds=b"short answer")] * 2,
    ]
    return reads + runs + tools


def request(method: str, path: str, token: str, kind: str = "", body: str = "", headers: str = "") -> bytes:
    fields = "Host: localhost\r\nAccept: */*\r\nUser-Agent: training\r\n" if not headers else "Host: localhost\r\n"
    fields += f"Authorization: Bearer {token}\r\n" if token else ""
    fields += f"Content-Type: {kind}\r\nContent-Length: {len(body.encode())}\r\n" if kind else ""
    return f"{method} {path} HTTP/1.1\r\n{fields}{headers}\r\n{body}".encode()


def tool(token: str, method: str, name: str = "", arguments: dict | None = None) -> bytes:
    """A request of the stateless revision of MCP."""
    meta = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
    params = {"_meta": {**meta, "progressToken": "p"}}
    headers = f"MCP-Protocol-Version: {MODERN}\r\nMcp-Method: {method}\r\n"
    if name:
        params |= {"name": name, "arguments": arguments}
        headers += f"Mcp-Name: {name}\r\n"
    return rpc(token, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, headers)


def rpc(token: str, body: dict, headers: str) -> bytes:
    accept = "Accept: application/json, text/event-stream\r\n"
    return request("POST", "/mcp", token, "application/json", json.dumps(body), accept + headers)


class Connection:
    """A connection to the gateway."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def make(self, call: Call) -> str:
        """Makes a call and gives the head of its answer."""
        self.writer.write(call.request)
        asked = call.request.split(b"\r\n")[0].decode()
        try:
            head, body = await asyncio.wait_for(message(self.reader), PATIENCE_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            raise TrainingError(f"{asked}: no answer, {error!r}") from None
        if int(head[9:12]) != call.status or call.holds not in body:
            raise TrainingError(f"{asked}: wanted {call.status} with {call.holds!r}, got {head.splitlines()[0]}: {body[:300]!r}")
        return head


async def session(port: int, token: str) -> list[Call]:
    """Opens a session of the older revision of MCP, and gives what is asked in it."""
    client = {"name": "training", "version": "1"}
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}
    async with Connection(port) as connection:
        opening = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        head = await connection.make(Call(rpc(token, opening, "")))
        opened = next(line for line in head.split("\r\n") if line.lower().startswith("mcp-session-id"))
        headers = f"{opened}\r\nMCP-Protocol-Version: {LEGACY}\r\n"
        await connection.make(Call(rpc(token, {"jsonrpc": "2.0", "method": "notifications/initialized"}, headers), 202))
    params = {"name": "run_agent", "arguments": {"kind": "agent", "agent": "agent-1", "message": "hello"}}
    return [
        Call(rpc(token, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, headers), holds=b"run_agent"),
        Call(rpc(token, {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}, headers), holds=b"short answer"),
    ]


async def play(port: int, token: str, viewer: str, seconds: float) -> int:
    """Makes all calls in turns on many connections; says how many were made."""
    end, made = time.monotonic() + seconds, 0

    async def one(start: int) -> None:
        nonlocal made
        # A session of its own: an id may be under way once in a session.
        at, mix = start, calls(token, viewer) + await session(port, token)
        while time.monotonic() < end:
            async with Connection(port) as connection:
                for _ in range(CALLS_EACH):
                    await connection.make(mix[at % len(mix)])
                    at, made = at + 1, made + 1

    tasks = [asyncio.create_task(one(number)) for number in range(CONNECTIONS)]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # The first that went wrong says it for all.
    for error in filter(None, (task.exception() for task in done)):
        raise error
    return made


# --- the gateway ----------------------------------------------------------------------------------------------------


def train(binary: Path, environment: dict[str, str], seconds: float = SECONDS) -> int:
    """Starts a gateway, puts it to work, ends it; says how many calls it was asked."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        upstream = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
        ending.callback(stop, upstream, signal.SIGKILL)
        address = {"upstream": int(upstream.stdout.readline()), "port": free_port(), "admin": free_port()}
        config = Path(folder) / "config.toml"
        config.write_text(CONFIG.format(**address, policies=ROOT / "policies"))
        environment = {**os.environ, **environment, "TRAINING_KEY": KEY}

        def mint(role: str) -> str:
            words = ["token", "--tenant", "acme", "--subject", "alice", "--role", role, "--ttl", "2h", "--config", config]
            done = subprocess.run([binary, *words], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise TrainingError(f"no token: {done.stderr.strip()}")
            return done.stdout.strip()

        gateway = subprocess.Popen([binary, "run", "--config", config], env=environment, stderr=subprocess.DEVNULL)
        ending.callback(stop, gateway, signal.SIGTERM)
        wait_until_up(gateway, address["port"])
        return asyncio.run(play(address["port"], mint("operator"), mint("viewer"), seconds))


def wait_until_up(gateway: subprocess.Popen, port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and gateway.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TrainingError("the gateway did not come up")


def stop(child: subprocess.Popen, number: signal.Signals) -> None:
    """Ends a child and waits for its end."""
    child.send_signal(number)
    try:
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    match sys.argv[1:]:
        case ["serve"]:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(serve())
        case ["try", binary]:
            try:
                print(f"{train(Path(binary), {}, TRIAL_S)} calls, each answered as it should be")
            except TrainingError as error:
                print(f"training: {error}", file=sys.stderr)
                return 1
        case _:
            print("run it by `make release`", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
