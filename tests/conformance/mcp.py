"""Runs the public MCP conformance suites against a Tollbridge that is up.

The suites cannot send a token, so that a forwarder on loopback adds it to every request and changes nothing else. What
fails must be exactly what `expected-failures-*.yml` lists, with its reason; the status is 1 when it is not.
Usage: run.py --url URL; the token stands in MCP_TOKEN.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))

import node  # noqa: E402

SUITE_DEADLINE_S = 300
HEAD_BYTES_MAX = 64 * 1024
# Name, package, arguments, expected failures.
SUITES = [
    ("0.1.16, all", "conformance-0.1", ["--suite", "all"], "expected-failures-0.1.yml"),
    ("0.2.0, 2025-11-25", "conformance-0.2", ["--requirements", "2025-11-25"], "expected-failures-2025-11-25.yml"),
    ("0.2.0, 2026-07-28", "conformance-0.2", ["--requirements", "2026-07-28"], "expected-failures-2026-07-28.yml"),
]


class Forwarder:
    """Adds a token to each request on its way to the gateway, one request per connection."""

    def __init__(self, url: str, token: str) -> None:
        place = urlsplit(url)
        self.target = (place.hostname or "127.0.0.1", place.port or 80)
        self.token = token
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
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = client.recv(16 * 1024)
                if not chunk or len(head) > HEAD_BYTES_MAX:
                    return
                head += chunk
            head, _, rest = head.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not re.match(rb"(?i)(connection|authorization):", line)]
            lines += [b"Connection: close", b"Authorization: Bearer " + self.token.encode()]
            with socket.create_connection(self.target) as server:
                server.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + rest)
                threading.Thread(target=copy, args=(client, server), daemon=True).start()
                copy(server, client)


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Copies bytes until one side ends, then ends the other."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(64 * 1024):
            sink.sendall(chunk)
    for side in (source, sink):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def run(name: str, package: str, arguments: list[str], expected: str, url: str, verbose: bool) -> bool:
    """Runs one suite and prints its line."""
    script = HERE / "node_modules" / package / "dist" / "index.js"
    with tempfile.TemporaryDirectory() as folder:
        command = ["node", str(script), "server", "--url", url, *arguments, "-o", folder]
        command += ["--expected-failures", str(HERE / expected)]
        try:
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=SUITE_DEADLINE_S, check=False)
        except subprocess.TimeoutExpired:
            print(f"FAILED conformance {name}: no end after {SUITE_DEADLINE_S} s", flush=True)
            return False
    if verbose or done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    print(f"{'ok' if done.returncode == 0 else 'FAILED'} conformance {name}", flush=True)
    return done.returncode == 0


def main() -> int:
    """Runs the suites one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the MCP endpoint, such as http://127.0.0.1:8080/mcp")
    parser.add_argument("--verbose", action="store_true", help="print what the suites say, also when they pass")
    arguments = parser.parse_args()
    if not os.environ.get("MCP_TOKEN"):
        parser.error("set MCP_TOKEN")
    try:
        node.ensure(HERE)
    except node.NodeError as error:
        print(f"FAILED conformance: {error}", flush=True)
        return 1
    forwarder = Forwarder(arguments.url, os.environ["MCP_TOKEN"])
    good = True
    for suite in SUITES:
        good &= run(*suite, url=forwarder.url, verbose=arguments.verbose)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
