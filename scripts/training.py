"""Puts a gateway to work for a profile of it: what is asked of gateways often, over and over, through both doors, over plain
connections, TLS and HTTP/2.

Owns the mix of calls, what AgentOS would answer to them, and the check that each is answered as it should be: a profile of
refusals would be worthless. Does not build and does not measure (`release`, `benches/`). Invariant: what it started has
ended when `train` returns, each gateway by itself, so that it has written its profile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import stack as stacks

ROOT = stacks.ROOT
KEY = "training-training-training-training-1"
MODERN, LEGACY = "2026-07-28", "2025-11-25"
CONNECTIONS = 32
# A connection is closed after so many calls and opened anew.
CALLS_EACH = 100
# Of plain connections, and again of TLS.
SECONDS = 40.0
# `make test` tries all of it.
TRIAL_S = 4.0
PATIENCE_S = 20.0
EVENTS = 12


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


async def serve(port: int) -> None:
    """Answers as AgentOS does."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head, body = await message(reader)
                writer.write(answer(head, body))
                await writer.drain()

    server = await asyncio.start_server(one, "127.0.0.1", port)
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

    method: str
    path: str
    token: str
    kind: str = ""
    body: str = ""
    more: tuple[tuple[str, str], ...] = ()
    status: int = 200
    holds: bytes = b""

    def fields(self) -> list[tuple[str, str]]:
        """The header fields, whatever carries them."""
        fields = [("user-agent", "training"), *(self.more or [("accept", "*/*")])]
        if self.token:
            fields.append(("authorization", f"Bearer {self.token}"))
        if self.kind:
            fields += [("content-type", self.kind), ("content-length", str(len(self.body.encode())))]
        return fields

    def judge(self, right: bool, said: str, body: bytes) -> None:
        """Refuses an answer that is not the wanted one."""
        if not right or self.holds not in body:
            wanted = f"wanted {self.status} with {self.holds!r}"
            raise TrainingError(f"{self.method} {self.path}: {wanted}, got {said}: {body[:300]!r}")


def calls(token: str, viewer: str) -> list[Call]:
    """The mix: mostly reads and runs, some of everything else."""
    form = "application/x-www-form-urlencoded"
    file = (
        '--b\r\nContent-Disposition: form-data; name="message"\r\n\r\nread this\r\n--b\r\nContent-Disposition: form-data;'
        ' name="stream"\r\n\r\nfalse\r\n--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n'
        "Content-Type: text/plain\r\n\r\n" + "a line of text\n" * 300 + "\r\n--b--\r\n"
    )
    reads = [
        *[Call("GET", "/memories", token, holds=b"a small thing")] * 12,
        *[Call("GET", "/agents", token, holds=b"agent-3")] * 6,
        *[Call("GET", "/sessions?type=agent&limit=20", token, holds=b"a talk")] * 4,
        Call("GET", "/teams", token, holds=b"team-3"),
        Call("GET", "/memories", "", status=401),
        Call("GET", "/nothing", token, status=404),
        Call("POST", "/agents/agent-1/runs", viewer, form, "message=hello", status=403),
    ]
    runs = [Call("POST", "/agents/agent-1/runs", token, "multipart/form-data; boundary=b", file, holds=b"a short answer")]
    for kind, count in (("agents", 4), ("teams", 2), ("workflows", 2)):
        path = f"/{kind}/{kind[:-1]}-1/runs"
        body = "message=hello+there&stream="
        runs += [Call("POST", path, token, form, f"{body}true", holds=b"RunCompleted")] * count
        runs += [Call("POST", path, token, form, f"{body}false", holds=b"a short answer")]
    arguments = {"kind": "agent", "agent": "agent-1", "message": "hello there"}
    tools = [
        tool(token, "tools/list", b"run_agent"),
        tool(token, "tools/call", b"agent-3", "list_agents", {}),
        *[tool(token, "tools/call", b"short answer", "run_agent", arguments)] * 2,
    ]
    return reads + runs + tools


def tool(token: str, method: str, holds: bytes, name: str = "", arguments: dict | None = None) -> Call:
    """A request of the stateless revision of MCP."""
    meta = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
    params = {"_meta": {**meta, "progressToken": "p"}}
    fields = [("mcp-protocol-version", MODERN), ("mcp-method", method)]
    if name:
        params |= {"name": name, "arguments": arguments}
        fields.append(("mcp-name", name))
    return rpc(token, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, fields, holds)


def rpc(token: str, body: dict, fields: list[tuple[str, str]], holds: bytes = b"", status: int = 200) -> Call:
    accept = ("accept", "application/json, text/event-stream")
    return Call("POST", "/mcp", token, "application/json", json.dumps(body), (accept, *fields), status, holds)


# --- connections ----------------------------------------------------------------------------------------------------


# What trusts the gateway's certificate, by protocol; nothing for plain connections.
Tls = dict[str, ssl.SSLContext]


class One:
    """A connection of HTTP/1.1."""

    alpn = "http/1.1"

    def __init__(self, port: int, tls: Tls) -> None:
        self.port, self.tls = port, tls

    async def __aenter__(self) -> One:
        opening = asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls.get(self.alpn), limit=1 << 20)
        self.reader, self.writer = await asyncio.wait_for(opening, PATIENCE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def make(self, call: Call) -> str:
        """Makes a call and gives the head of its answer, where there is one to read."""
        try:
            return await asyncio.wait_for(self.exchange(call), PATIENCE_S)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError) as error:
            raise TrainingError(f"{call.method} {call.path}: no answer, {error!r}") from None

    async def exchange(self, call: Call) -> str:
        fields = "".join(f"{name}: {value}\r\n" for name, value in [("host", "localhost"), *call.fields()])
        self.writer.write(f"{call.method} {call.path} HTTP/1.1\r\n{fields}\r\n{call.body}".encode())
        head, body = await message(self.reader)
        call.judge(int(head[9:12]) == call.status, head.split("\r\n")[0], body)
        return head


class Two(One):
    """A connection of HTTP/2 (RFC 9113), one stream after the other, header fields as plain literals (RFC 7541)."""

    alpn = "h2"
    DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
    ACK = END_STREAM = 1
    END_HEADERS = 4
    WINDOW = 1 << 30
    # `:status: 200` in the static table; others are not told apart.
    OK = 0x88

    async def __aenter__(self) -> Two:
        await super().__aenter__()
        self.stream = -1
        settings = self.frame(self.SETTINGS, 0, 0, struct.pack("!HI", 4, self.WINDOW))
        window = self.frame(self.WINDOW_UPDATE, 0, 0, struct.pack("!I", self.WINDOW))
        self.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + window)
        return self

    @staticmethod
    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack("!IBI", len(payload) << 8 | kind, flags, stream) + payload

    @staticmethod
    def text(text: str) -> bytes:
        """A string of RFC 7541 §5.2: its length in 7 bits, and further ones."""
        data = text.encode()
        if len(data) < 127:
            return bytes([len(data)]) + data
        length, rest = b"\x7f", len(data) - 127
        while rest >= 128:
            length, rest = length + bytes([rest & 127 | 128]), rest >> 7
        return length + bytes([rest]) + data

    async def exchange(self, call: Call) -> str:
        self.stream += 2
        pseudo = [(":method", call.method), (":scheme", "https"), (":authority", "localhost"), (":path", call.path)]
        block = b"".join(b"\0" + self.text(name) + self.text(value) for name, value in [*pseudo, *call.fields()])
        ends = 0 if call.body else self.END_STREAM
        sent = self.frame(self.HEADERS, self.END_HEADERS | ends, self.stream, block)
        if call.body:
            sent += self.frame(self.DATA, self.END_STREAM, self.stream, call.body.encode())
        self.writer.write(sent)
        first, body, ended = b"", b"", False
        while not ended:
            (length, kind, flags, stream) = struct.unpack("!IBBI", b"\0" + await self.reader.readexactly(9))
            payload = await self.reader.readexactly(length)
            if kind in (self.RST_STREAM, self.GOAWAY):
                raise ValueError(f"frame {kind}, {payload!r}")
            if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
                self.writer.write(self.frame(kind, self.ACK, 0, payload if kind == self.PING else b""))
            if stream == self.stream and kind in (self.HEADERS, self.DATA):
                first, body = first or payload[:1], body + (payload if kind == self.DATA else b"")
                ended = bool(flags & self.END_STREAM)
        call.judge((first == bytes([self.OK])) == (call.status == 200), f"a head that begins with {first!r}", body)
        return ""


async def session(port: int, tls: Tls, token: str) -> list[Call]:
    """Opens a session of the older revision of MCP, and gives what is asked in it."""
    client = {"name": "training", "version": "1"}
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}
    async with One(port, tls) as connection:
        head = await connection.make(rpc(token, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, []))
        lines = [line.split(": ", 1) for line in head.split("\r\n") if ": " in line]
        opened = [(name.lower(), value) for name, value in lines if name.lower() == "mcp-session-id"]
        fields = [*opened, ("mcp-protocol-version", LEGACY)]
        await connection.make(rpc(token, {"jsonrpc": "2.0", "method": "notifications/initialized"}, fields, status=202))
    params = {"name": "run_agent", "arguments": {"kind": "agent", "agent": "agent-1", "message": "hello"}}
    return [
        rpc(token, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, fields, b"run_agent"),
        rpc(token, {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}, fields, b"short answer"),
    ]


async def play(port: int, tls: Tls, tokens: tuple[str, str], seconds: float) -> int:
    """Makes all calls in turns on many connections, at least each of them once; says how many were made."""
    end, made = time.monotonic() + seconds, 0

    async def one(number: int) -> None:
        nonlocal made
        # Over TLS every other connection is one of HTTP/2.
        way = Two if tls and number % 2 else One
        # A session of its own: an id may be under way once in a session.
        at, mix = number, calls(*tokens) + await session(port, tls, tokens[0])
        while time.monotonic() < end or at < number + len(mix):
            async with way(port, tls) as connection:
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


class Gateway:
    """A gateway before an AgentOS of ours, plain or with TLS."""

    def __init__(self, binary: Path, folder: Path, environment: dict[str, str], tls: bool) -> None:
        self.binary, self.folder = binary, folder
        self.port, self.admin, self.upstream = stacks.free_ports(3)
        self.environment = {**os.environ, "STAND_KEY": KEY}
        self.tls = self.certify() if tls else {}
        server = ['drain_timeout = "5s"']
        server += ['tls = { certificate = "server.pem", key = "server.key" }'] if tls else []
        config = stacks.stand_config(self.port, self.admin, self.upstream, *server)
        (folder / "config.toml").write_text(config)
        self.tokens = (self.mint("operator"), self.mint("viewer"))
        self.starting = {**self.environment, **environment}
        self.children = contextlib.ExitStack()

    def __enter__(self) -> Gateway:
        try:
            serving = [sys.executable, __file__, "serve", str(self.upstream)]
            # A gateway that finds nobody looks again after seconds.
            self.start("AgentOS", serving, self.environment, lambda: listens(self.upstream))
            running = [str(self.binary), "run", "--config", str(self.folder / "config.toml")]
            ready = f"http://127.0.0.1:{self.admin}"
            self.process = self.start("Tollbridge", running, self.starting, lambda: stacks.answers(ready, "/readyz"))
        except BaseException:
            self.children.close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        status = self.process.stop(PATIENCE_S)
        self.children.close()
        if status and not kind:
            raise TrainingError(f"the gateway did not end by itself, status {status}:\n{self.process.tail()}")

    def start(
        self, name: str, command: list[str], environment: dict[str, str], is_up: Callable[[], bool]
    ) -> stacks.Child:
        """Starts a child and waits until it is up."""
        child = stacks.Child(name, command, self.folder / f"{name}.log", environment, self.folder)
        self.children.callback(child.stop, PATIENCE_S)
        child.wait_until(is_up, PATIENCE_S, "start")
        return child

    def certify(self) -> Tls:
        """Makes a certificate, and what trusts it."""
        certificate = self.folder / "server.pem"
        stacks.make_certificate(certificate, self.folder / "server.key")
        contexts = {way.alpn: ssl.create_default_context(cafile=str(certificate)) for way in (One, Two)}
        for alpn, context in contexts.items():
            context.set_alpn_protocols([alpn])
        return contexts

    def mint(self, role: str) -> str:
        words = ["token", "--tenant", "acme", "--subject", "alice", "--role", role, "--ttl", "2h"]
        # What mints is no gateway at work: its profile goes nowhere.
        environment = {**self.environment, "LLVM_PROFILE_FILE": os.devnull}
        return stacks.ask([str(self.binary), *words, "--config", str(self.folder / "config.toml")], environment).strip()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def train(binary: Path, environment: dict[str, str], seconds: float = SECONDS) -> int:
    """Puts gateways to work, first plain, then with TLS; says how many calls they were asked.

    Raises TrainingError, and StackError for what is missing or did not come up.
    """
    made = 0
    for tls in (False, True):
        with tempfile.TemporaryDirectory() as folder, Gateway(binary, Path(folder), environment, tls) as gateway:
            made += asyncio.run(play(gateway.port, gateway.tls, gateway.tokens, seconds))
    return made


def main() -> int:
    match sys.argv[1:]:
        case ["serve", port]:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(serve(int(port)))
        case ["try"]:
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
            try:
                print(f"{train(stacks.build_binary(), {}, TRIAL_S)} calls, each answered as it should be")
            except (TrainingError, stacks.StackError) as error:
                print(f"training: {error}", file=sys.stderr)
                return 1
        case _:
            print("run it by `make release`", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
