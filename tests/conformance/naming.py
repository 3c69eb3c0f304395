"""Lets the public MCP conformance suites reach a gateway that wants a token and has names of its own.

Owns the forwarder in front of the gateway, one request per connection. It adds the token, and where it is told to, writes
the names of the suites' fixtures as ours: a fixture tool is a run of the agent with that id (`agentos`), a fixture resource
an address of ours. Answers go back as they come, but for the keys in KEYS. Does not answer anything itself: what the
suites judge is what the gateway said.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import agentos

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 8 * 1024 * 1024
WAIT_S = 120

# Runs that the suites expect to go on as tasks: the call does not wait for their end.
AT_ONCE = {"slow_compute", "failing_job", "confirm_delete", "multi_input"}
# The same, but only after a question: how many seconds the call waits.
PATIENCE = {"test_tool_with_task": 1}
# The suites insist on the key of one question; ours are made from what is asked about.
KEYS = {"test_input_required_result_elicitation": "user_name"}
OUR_KEY = re.compile(rb"(?:confirm|input|approval)-\d+-[0-9a-f]{32}")
# With a tool per agent, what is made changes the list of tools as well.
TOOLSETS = b"X-MCP-Toolsets: agents,knowledge,approvals,sessions,ask"
# Tools that change what is listed: a component is made through the gateway before the call goes on.
TRIGGERS = {"test_trigger_tool_change", "test_trigger_prompt_change"}
RESOURCES = {
    "test://static-text": "agno://agents/test_simple_text",
    "test://watched-resource": "agno://agents/test_simple_text",
    "test://template/123/data": "agno://agents/123",
}


@dataclass
class Names:
    """How the names of the fixtures are written; `blob` is the address of something binary."""

    blob: str
    keys: dict[str, str] = field(default_factory=dict)

    def ours(self, message: dict[str, Any]) -> dict[str, tuple[str, str]] | None:
        """Writes a message with our names, in place; gives the headers that change with it, what they say in both ways.

        None when the message stays as it is.
        """
        params, method = message.get("params"), message.get("method")
        if not isinstance(params, dict):
            return None
        if method == "tools/call":
            return self.call(params)
        if method == "prompts/get" and params.get("name") in agentos.AGENTS:
            said = params.get("arguments") or {}
            params["arguments"] = {"message": " ".join(map(str, said.values())) or "Say it."}
            return {}
        uri = params.get("uri")
        ours = {**RESOURCES, "test://static-binary": self.blob}.get(uri) if isinstance(uri, str) else None
        if ours is None:
            return None
        params["uri"] = ours
        return {"mcp-name": (uri, ours)}

    def call(self, params: dict[str, Any]) -> dict[str, tuple[str, str]] | None:
        """The same for a call of a tool."""
        name = params.get("name")
        agent = "test_simple_text" if name in TRIGGERS else name
        if agent not in agentos.AGENTS:
            return None
        arguments = {"agent": agent, "kind": "agent", "message": json.dumps(params.get("arguments") or {})}
        if name in AT_ONCE:
            arguments["wait_s"] = 0
        params["name"], params["arguments"] = "run_agent", arguments
        given = params.get("inputResponses")
        if name in KEYS and isinstance(given, dict):
            params["inputResponses"] = {self.keys.get(key, key): value for key, value in given.items()}
        waits = {"x-mcp-wait": ("", str(PATIENCE[name]))} if name in PATIENCE else {}
        return {"mcp-name": (name, "run_agent"), **waits}

    def theirs(self, tool: str, answer: bytes) -> bytes:
        """Writes the key of a question in an answer as the suites know it."""
        found = OUR_KEY.search(answer)
        if not found:
            return answer
        self.keys[KEYS[tool]] = found.group().decode()
        return answer.replace(found.group(), KEYS[tool].encode())


class Forwarder:
    """Stands in front of a gateway on loopback."""

    def __init__(self, url: str, token: str, names: Names | None) -> None:
        place = urlsplit(url)
        self.target = (place.hostname or "127.0.0.1", place.port or 80)
        self.token = token
        self.names = names
        self.listener = socket.create_server(("127.0.0.1", 0))
        # The port of the gateway stays out of it: only names without a port are compared with Host.
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}{place.path}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Serves connections until the process ends."""
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        """Carries one request and its answer."""
        with client, contextlib.suppress(OSError, ValueError):
            client.settimeout(WAIT_S)
            head, body = read_request(client)
            lines = [line for line in head.split(b"\r\n") if not re.match(rb"(?i)(connection|authorization):", line)]
            lines += [b"Connection: close", b"Authorization: Bearer " + self.token.encode()]
            lines += [TOOLSETS] if self.names else []
            tool = None
            if self.names and (message := json_object(body)):
                tool = tool_of(message)
                if tool in TRIGGERS:
                    self.make_component()
                headers = self.names.ours(message)
                if headers is not None:
                    lines, body = rewritten(lines, message, headers)
            with socket.create_connection(self.target, timeout=WAIT_S) as server:
                server.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
                if self.names and tool in KEYS:
                    client.sendall(renamed(read_all(server), self.names, tool))
                    return
                threading.Thread(target=copy, args=(client, server), daemon=True).start()
                copy(server, client)

    def make_component(self) -> None:
        """Makes a component through the gateway, so that the lists of its callers change."""
        body = json.dumps({"name": "made", "component_type": "agent"}).encode()
        head = "POST /components HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\nAuthorization: Bearer {self.token}\r\n\r\n"
        with socket.create_connection(self.target, timeout=WAIT_S) as server:
            server.sendall(head.encode() + body)
            answer = read_all(server)
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            print(f"conformance: no component was made: {answer[:300]!r}", flush=True)


def read_request(client: socket.socket) -> tuple[bytes, bytes]:
    """The head of a request, without its last line break, and its body. Raises ValueError for one that is none."""
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = client.recv(16 * 1024)
        if not chunk or len(head) > HEAD_BYTES_MAX:
            raise ValueError("no request")
        head += chunk
    head, _, body = head.partition(b"\r\n\r\n")
    found = re.search(rb"(?im)^content-length:[ \t]*(\d+)", head)
    length = int(found.group(1)) if found else 0
    if length > BODY_BYTES_MAX:
        raise ValueError("too large")
    while len(body) < length:
        chunk = client.recv(64 * 1024)
        if not chunk:
            raise ValueError("the body broke off")
        body += chunk
    return head, body


def json_object(body: bytes) -> dict[str, Any] | None:
    """A body that is one JSON object."""
    with contextlib.suppress(ValueError):
        message = json.loads(body)
        return message if isinstance(message, dict) else None
    return None


def tool_of(message: dict[str, Any]) -> str | None:
    """The tool that a message calls."""
    params = message.get("params")
    return params.get("name") if message.get("method") == "tools/call" and isinstance(params, dict) else None


def rewritten(
    lines: list[bytes], message: dict[str, Any], headers: dict[str, tuple[str, str]]
) -> tuple[list[bytes], bytes]:
    """A request with another message and other headers. A header that was missing, or said something else, stays so."""
    body = json.dumps(message).encode()
    out = []
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        old, new = headers.get(name.strip().lower(), (None, ""))
        if name.strip().lower() == "content-length":
            line = f"Content-Length: {len(body)}".encode()
        elif value.strip() == old:
            line = f"{name}: {new}".encode("latin-1")
        out.append(line)
    return out + [f"{name}: {new}".encode() for name, (old, new) in headers.items() if not old], body


def renamed(answer: bytes, names: Names, tool: str) -> bytes:
    """A whole answer with the key of its question renamed. It came over a connection that closes: no framing is lost."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if re.search(rb"(?im)^transfer-encoding:", head):
        return answer
    body = names.theirs(tool, body)
    head = re.sub(rb"(?im)^content-length:[^\r\n]*", b"Content-Length: " + str(len(body)).encode(), head)
    return head + b"\r\n\r\n" + body


def read_all(server: socket.socket) -> bytes:
    """Everything until the other side closes."""
    answer = b""
    while chunk := server.recv(64 * 1024):
        answer += chunk
    return answer


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Copies bytes until one side ends, then ends the other."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(64 * 1024):
            sink.sendall(chunk)
    for side in (source, sink):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
