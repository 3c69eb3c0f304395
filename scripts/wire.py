"""The wire clients of the tour, standard library only: HTTP, server-sent events, WebSocket, MCP.

Small on purpose: they check what Tollbridge puts on the wire, so they hide nothing and retry nothing. Not for use
against servers that are not trusted.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import os
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

TIMEOUT_S = 60.0
MODERN = "2026-07-28"
LEGACY = "2025-11-25"


@dataclass
class Answer:
    """A complete HTTP answer."""

    status: int
    headers: dict[str, str]
    """Names in lower case; the last one wins."""
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ValueError with the beginning of the body when it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise ValueError(f"not JSON ({self.status}): {self.body[:200]!r}") from None

    @property
    def code(self) -> str:
        """The `code` of a problem body, or an empty string."""
        if "json" not in self.headers.get("content-type", ""):
            return ""
        body = self.json()
        return str(body.get("code", "")) if isinstance(body, dict) else ""


@dataclass
class Event:
    """A server-sent event and when it arrived, in seconds after the request was sent."""

    name: str
    data: Any
    at_s: float


@dataclass
class Http:
    """One caller's view of a server: its origin and the caller's token."""

    origin: str
    token: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **headers: str) -> Answer:
        """GET."""
        return self.send("GET", path, None, headers)

    def form(self, path: str, **fields: str) -> Answer:
        """POST with an urlencoded form."""
        return self.send("POST", path, urlencode(fields).encode(), {"Content-Type": "application/x-www-form-urlencoded"})

    def multipart(self, path: str, **fields: str) -> Answer:
        """POST with a multipart form."""
        body, content_type = multipart(fields)
        return self.send("POST", path, body, {"Content-Type": content_type})

    def post_json(self, path: str, body: Any) -> Answer:
        """POST with a JSON document."""
        return self.send("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """Any request; reads the whole answer."""
        connection, response = self._open(method, path, body, headers)
        try:
            return Answer(response.status, lower(response), response.read())
        finally:
            connection.close()

    def events(self, path: str, **fields: str) -> Iterator[Event]:
        """POST with an urlencoded form; yields the events as they arrive."""
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/event-stream"}
        started = time.monotonic()
        connection, response = self._open("POST", path, urlencode(fields).encode(), headers)
        try:
            if response.status != 200:
                raise ValueError(f"answered {response.status}: {response.read()[:300]!r}")
            yield from read_events(response, started)
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        address = urlsplit(self.origin)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
        merged = {**self.headers, **headers}
        if self.token:
            merged["Authorization"] = f"Bearer {self.token}"
        connection.request(method, path, body, merged)
        return connection, connection.getresponse()


def lower(response: http.client.HTTPResponse) -> dict[str, str]:
    """The headers of a response with their names in lower case."""
    return {name.lower(): value for name, value in response.getheaders()}


def multipart(fields: dict[str, str]) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    return ("".join(parts) + f"--{boundary}--\r\n").encode(), f"multipart/form-data; boundary={boundary}"


def read_events(response: http.client.HTTPResponse, started: float) -> Iterator[Event]:
    """The events of a stream; comments and empty events are skipped."""
    name, data = "message", []
    while line := response.readline():
        text = line.decode().rstrip("\r\n")
        if text.startswith("event:"):
            name = text[6:].strip()
        elif text.startswith("data:"):
            data.append(text[5:].strip())
        elif not text and data and any(data):
            yield Event(name, json.loads("\n".join(data)), time.monotonic() - started)
            name, data = "message", []
        elif not text:
            name, data = "message", []


# --- MCP ------------------------------------------------------------------------------------------------------------


class McpError(Exception):
    """A JSON-RPC error, or an HTTP answer that is no JSON-RPC at all."""


@dataclass
class Progress:
    """A progress notification and when it arrived."""

    progress: float
    message: str
    at_s: float


@dataclass
class ToolResult:
    """The result of a tool call."""

    text: str
    is_error: bool
    structured: Any
    progress: list[Progress]
    took_s: float
    raw: dict[str, Any]


class Mcp:
    """What both eras of the protocol share: one request, its notifications, its result."""

    def __init__(self, url: str, token: str | None) -> None:
        address = urlsplit(url)
        self.path = address.path
        self.http = Http(f"{address.scheme}://{address.netloc}", token)
        self.ids = itertools.count(1)

    def request(self, method: str, params: dict[str, Any], on_progress: Callable[[Progress], None] | None = None) -> dict:
        """Sends a request and returns its result."""
        raise NotImplementedError

    def tools(self) -> dict[str, dict[str, Any]]:
        """The tools that the server lists, by name."""
        return {tool["name"]: tool for tool in self.request("tools/list", {})["tools"]}

    def call(self, tool: str, **arguments: Any) -> ToolResult:
        """Calls a tool, asking for progress."""
        progress: list[Progress] = []
        started = time.monotonic()
        params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": f"p-{uuid.uuid4().hex[:8]}"}}
        result = self.request("tools/call", params, progress.append)
        text = "\n".join(part.get("text", "") for part in result.get("content", []) if part.get("type") == "text")
        took = time.monotonic() - started
        return ToolResult(
            text, bool(result.get("isError")), result.get("structuredContent"), progress, took, result
        )

    def exchange(
        self, message: dict[str, Any], headers: dict[str, str], on_progress: Callable[[Progress], None] | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Posts one JSON-RPC message and reads until its response; returns it with the HTTP headers."""
        sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
        started = time.monotonic()
        connection, response = self.http._open("POST", self.path, json.dumps(message).encode(), sent)
        try:
            if "text/event-stream" not in response.getheader("content-type", ""):
                body = response.read()
                if response.status == 202 or (response.status == 200 and not body):
                    return {}, lower(response)
                try:
                    return json.loads(body), lower(response)
                except ValueError:
                    raise McpError(f"HTTP {response.status}: {body[:200].decode(errors='replace')}") from None
            for event in read_events(response, started):
                if event.data.get("method") == "notifications/progress" and on_progress:
                    params = event.data["params"]
                    on_progress(Progress(params["progress"], params.get("message", ""), event.at_s))
                if event.data.get("id") == message.get("id") and "method" not in event.data:
                    return event.data, lower(response)
            raise McpError("the stream ended before the response")
        finally:
            connection.close()


def result_of(reply: dict[str, Any]) -> dict[str, Any]:
    """The result of a JSON-RPC response; raises its error."""
    if "error" in reply:
        raise McpError(json.dumps(reply["error"]))
    if "result" not in reply:
        raise McpError(f"neither result nor error: {json.dumps(reply)[:200]}")
    return reply["result"]


class ModernMcp(Mcp):
    """A client of the stateless protocol (2026-07-28): every request carries what the server has to know."""

    def request(self, method: str, params: dict[str, Any], on_progress: Callable[[Progress], None] | None = None) -> dict:
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "tollbridge-tour", "version": "1"},
            **params.get("_meta", {}),
        }
        message = {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": {**params, "_meta": meta}}
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
        if "name" in params:
            headers["Mcp-Name"] = params["name"]
        reply, _ = self.exchange(message, headers, on_progress)
        return result_of(reply)


class LegacyMcp(Mcp):
    """A client of the session protocol (2025-11-25)."""

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token)
        self.headers: dict[str, str] = {}
        params = {
            "protocolVersion": LEGACY,
            "capabilities": {},
            "clientInfo": {"name": "tollbridge-tour", "version": "1"},
        }
        message = {"jsonrpc": "2.0", "id": next(self.ids), "method": "initialize", "params": params}
        reply, headers = self.exchange(message, {}, None)
        self.server = result_of(reply)
        self.headers["MCP-Protocol-Version"] = self.server["protocolVersion"]
        if "mcp-session-id" in headers:
            self.headers["Mcp-Session-Id"] = headers["mcp-session-id"]
        self.exchange({"jsonrpc": "2.0", "method": "notifications/initialized"}, self.headers, None)

    def request(self, method: str, params: dict[str, Any], on_progress: Callable[[Progress], None] | None = None) -> dict:
        message = {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": params}
        reply, _ = self.exchange(message, self.headers, on_progress)
        return result_of(reply)

    def close(self) -> None:
        """Ends the session."""
        self.http.send("DELETE", self.path, None, self.headers)


# --- WebSocket ------------------------------------------------------------------------------------------------------


class HandshakeRefused(Exception):
    """The server answered the upgrade with something other than 101; `status` says what."""

    def __init__(self, status: int, head: str) -> None:
        super().__init__(f"the upgrade was answered with {status}: {head[:200]}")
        self.status = status


class WebSocket:
    """A client for text messages (RFC 6455); no extensions, no fragmentation of what it sends."""

    def __init__(self, origin: str, path: str, token: str | None) -> None:
        address = urlsplit(origin)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_S)
        self.buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        )
        if token:
            head += f"Authorization: Bearer {token}\r\n"
        self.socket.sendall((head + "\r\n").encode())
        while b"\r\n\r\n" not in self.buffer:
            self._fill()
        answer, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        text = answer.decode(errors="replace")
        status = int(text.split(" ", 2)[1])
        if status != 101:
            self.socket.close()
            raise HandshakeRefused(status, text)
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        if f"sec-websocket-accept: {accept}".lower() not in text.lower():
            raise ValueError("the upgrade was answered with a wrong Sec-WebSocket-Accept")

    def send(self, message: dict[str, Any]) -> None:
        """Sends one JSON message."""
        self._frame(0x1, json.dumps(message).encode())

    def messages(self) -> Iterator[str]:
        """The text messages until the server closes."""
        whole = b""
        while True:
            final, opcode, payload = self._read_frame()
            if opcode == 0x8:
                return
            if opcode == 0x9:
                self._frame(0xA, payload)
            if opcode in (0x0, 0x1):
                whole += payload
                if final:
                    yield whole.decode()
                    whole = b""

    def close(self) -> None:
        """Says goodbye and closes; a server that is gone already is fine."""
        try:
            self._frame(0x8, struct.pack("!H", 1000))
        except OSError:
            pass
        self.socket.close()

    def _frame(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
        elif length < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self.socket.sendall(head + mask + masked)

    def _read_frame(self) -> tuple[bool, int, bytes]:
        first, second = self._take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        return bool(first & 0x80), first & 0x0F, self._take(length)

    def _take(self, length: int) -> bytes:
        while len(self.buffer) < length:
            self._fill()
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the socket")
        self.buffer += data


def socket_event(message: str) -> dict[str, Any]:
    """A message of `/workflows/ws`: bare JSON, or JSON wrapped as a server-sent event."""
    for line in message.splitlines():
        if line.startswith("data:"):
            return json.loads(line[5:])
    return json.loads(message)
