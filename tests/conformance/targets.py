"""Starts what is compared: the gateway and HAProxy, each in front of the same small upstream.

Owns the processes and their configurations. Does not send cases (`run`). Invariant: everything binds loopback, on
ports that were free, and ends with this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import stack as stacks  # noqa: E402

KEY = "conformance-conformance-conformance-1"
UP_DEADLINE_S = 20.0


class TargetError(Exception):
    """A target cannot be started; the text says what to do."""


class Upstream(BaseHTTPRequestHandler):
    """Answers as little of AgentOS as the cases need, over HTTP/1.1."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Lists one agent; anything else is an object."""
        self.reply([{"id": "a", "name": "A", "description": "one"}] if self.path.startswith("/agents") else {"status": "ok"})

    def do_POST(self) -> None:
        """Reads the body, however it is framed, and reports a run that has ended."""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get("content-length", 0)))
        self.reply({"run_id": "r", "status": "COMPLETED", "content": "done"})

    do_HEAD = do_PUT = do_PATCH = do_DELETE = do_GET

    def reply(self, value: object) -> None:
        """One JSON answer."""
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class QuietServer(ThreadingHTTPServer):
    """A server whose peers may go away in the middle."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Broken requests are what is sent here."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(port: int, child: subprocess.Popen[bytes], name: str, log: Path) -> None:
    """Waits for somebody who listens."""
    deadline = time.monotonic() + UP_DEADLINE_S
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TargetError(f"{name} did not come up:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def running(command: list[str], port: int, name: str, folder: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A process that listens on a port, ended at the end."""
    log = folder / f"{name}.log"
    with log.open("wb") as sink:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, cwd=folder)
        try:
            wait_until_up(port, child, name, log)
            yield
        finally:
            child.terminate()
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    """The upstream of both."""
    server = QuietServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def binary() -> Path:
    """The gateway: `TOLLBRIDGE_BIN`, or what cargo built last."""
    named = os.environ.get("TOLLBRIDGE_BIN")
    candidates = [Path(named)] if named else [ROOT / "target/debug/tollbridge", ROOT / "target/release/tollbridge"]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise TargetError("the gateway is not built; help: `cargo build --locked`, or name it in TOLLBRIDGE_BIN")
    return max(found, key=lambda path: path.stat().st_mtime).resolve()


def echo_binary() -> Path:
    """The echo on the gateway's WebSocket codec: `WEBSOCKET_ECHO_BIN`, or what cargo built."""
    path = Path(os.environ.get("WEBSOCKET_ECHO_BIN") or ROOT / "target/debug/examples/websocket_echo")
    if not path.is_file():
        raise TargetError("the echo is not built; help: `cargo build --locked --example websocket_echo`")
    return path.resolve()


@contextlib.contextmanager
def announcing(command: list[str]) -> Iterator[int]:
    """A process that prints its address or port first, ended at the end."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        line = child.stdout.readline() if child.stdout else ""
        if not line.strip():
            raise TargetError(f"`{command[0]}` ended before it listened")
        yield int(line.strip().rpartition(":")[2])
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def gateway(upstream_port: int, folder: Path) -> Iterator[tuple[int, str]]:
    """The gateway with HTTP/2 on a plain listener, and a token for it."""
    port, admin = free_port(), free_port()
    config = folder / "config.toml"
    config.write_text(stacks.stand_config(port, admin, upstream_port, "h2c = true"))
    environment = dict(os.environ, STAND_KEY=KEY)
    token = subprocess.run(
        [str(binary()), "token", "--tenant", "acme", "--subject", "alice", "--role", "operator", "--ttl", "1h", "--config", str(config)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if token.returncode != 0:
        raise TargetError(f"no token could be made: {token.stderr.strip()}")
    with running([str(binary()), "run", "--config", str(config)], port, "gateway", folder, environment):
        yield port, token.stdout.strip()


HAPROXY = """
global
    maxconn 512
defaults
    mode http
    timeout connect 2s
    timeout client 20s
    timeout server 20s
    timeout tunnel 20s
frontend two
    bind 127.0.0.1:{two} proto h2
    default_backend upstream
frontend one
    bind 127.0.0.1:{one}
    default_backend echo
backend upstream
    server upstream 127.0.0.1:{upstream}
backend echo
    server echo 127.0.0.1:{echo}
"""


def haproxy_binary() -> str:
    """Where HAProxy is."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise TargetError("HAProxy is missing; help: `apt-get install haproxy`")
    return found


@contextlib.contextmanager
def haproxy(upstream_port: int, echo_port: int, folder: Path) -> Iterator[tuple[int, int]]:
    """HAProxy: the port that speaks HTTP/2, and the one before the WebSocket echo."""
    two, one = free_port(), free_port()
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(two=two, one=one, upstream=upstream_port, echo=echo_port))
    with running([haproxy_binary(), "-db", "-f", str(config)], two, "haproxy", folder):
        yield two, one


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="tollbridge-conformance-") as made:
        yield Path(made)
