"""Plays a bounded load at a fixed rate through the gateway over two real AgentOS replicas, and changes things meanwhile.

Owns the load, the changes and the verdict. Does not measure speed (`benches/proxy.rs`). Run it by `make load`; it needs
the environments of `make venvs` and a gateway (`TOLLBRIDGE_BIN`, else it builds one).

What is played, over TLS where `openssl` can make certificates: short reads on new and on kept connections, runs that
answer whole, runs that stream for five seconds, and such runs as tool calls over MCP. Meanwhile, in this order: policies are reloaded (SIGHUP), the
configuration gets a tenant (SIGHUP), the certificate is replaced (SIGHUP), the binary is upgraded (SIGUSR2), one replica
of two is killed (SIGKILL). A change that the binary does not know is named and left out.

Invariant: no request may fail and no stream may be cut before the kill; the kill costs at most the requests in flight
on the killed replica, by the gateway's own access log. Status 0: that held.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import queue
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import stack as stacks  # noqa: E402

PATIENCE_S = 30.0
READS_PER_S, AGAIN_PER_S, WHOLE_PER_S, STREAMS_PER_S, TOOLS_PER_S = 8.0, 8.0, 1.0, 2.0, 1.0
STREAM_CHUNKS, STREAM_DELAY_S = 20, 0.25
MCP_REVISION, MCP_META = "2026-07-28", "io.modelcontextprotocol"
NEW_TENANT = """
[tenants.umbrella]
plan = "pro"
"""


@dataclass
class Outcome:
    """One request: what it was, when, and how it ended."""

    kind: str
    request_id: str
    began: float
    ended: float
    failure: str = ""


@dataclass
class Ledger:
    """Everything that happened."""

    outcomes: list[Outcome] = field(default_factory=list)
    reconnects: int = 0
    late_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: Outcome) -> None:
        """Notes one request."""
        with self.lock:
            self.outcomes.append(outcome)


class Broken(Exception):
    """A request failed; the text says how."""


class Load:
    """The load: a schedule, and threads that follow it."""

    def __init__(self, stack: stacks.Stack, tls: ssl.SSLContext | None, seconds: float) -> None:
        self.stack, self.tls, self.seconds = stack, tls, seconds
        self.ledger = Ledger()
        self.due: queue.Queue[tuple[float, str] | None] = queue.Queue()
        self.spare: list[http.client.HTTPConnection] = []
        self.spare_lock = threading.Lock()

    def run(self) -> list[threading.Thread]:
        """Starts everything; the threads end with the load."""
        rates = {"read": READS_PER_S, "again": AGAIN_PER_S, "whole": WHOLE_PER_S, "stream": STREAMS_PER_S, "tool": TOOLS_PER_S}
        self.started = time.monotonic()
        plan = sorted((n / rate, kind) for kind, rate in rates.items() for n in range(int(self.seconds * rate)))
        workers = int((STREAMS_PER_S + TOOLS_PER_S) * STREAM_CHUNKS * STREAM_DELAY_S * 2) + 24
        threads = [threading.Thread(target=self.work, daemon=True) for _ in range(workers)]
        feeder = threading.Thread(target=self.feed, args=(plan, workers), daemon=True)
        for thread in [*threads, feeder]:
            thread.start()
        return [*threads, feeder]

    def feed(self, plan: list[tuple[float, str]], workers: int) -> None:
        """Hands out each request at its time."""
        for at, kind in plan:
            time.sleep(max(0.0, self.started + at - time.monotonic()))
            self.due.put((self.started + at, kind))
        for _ in range(workers):
            self.due.put(None)

    def work(self) -> None:
        """Plays what is due until nothing is left."""
        while (next_one := self.due.get()) is not None:
            due, kind = next_one
            began, request_id, failure = time.time(), str(uuid.uuid4()), ""
            with self.ledger.lock:
                self.ledger.late_s = max(self.ledger.late_s, time.monotonic() - due)
            try:
                getattr(self, kind)(request_id)
            except (Broken, OSError, http.client.HTTPException) as error:
                failure = f"{type(error).__name__}: {error}"
            self.ledger.add(Outcome(kind, request_id, began, time.time(), failure))

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        host, _, port = self.stack.listen.rpartition(":")
        if self.tls:
            return http.client.HTTPSConnection(host, int(port), timeout=PATIENCE_S, context=self.tls)
        return http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)

    def headers(self, request_id: str) -> dict[str, str]:
        """Who calls, and the id that the access log will carry."""
        return {"Authorization": f"Bearer {self.stack.tokens['alice']}", "X-Request-Id": request_id}

    def read(self, request_id: str) -> None:
        """A read on a connection of its own."""
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request("GET", "/sessions?type=agent", headers={**self.headers(request_id), "Connection": "close"})
            whole(connection.getresponse())

    def again(self, request_id: str) -> None:
        """A read on a connection that is used again; one that was closed meanwhile is replaced, as clients do."""
        with self.spare_lock:
            connection = self.spare.pop() if self.spare else None
        for reused in [True, False] if connection else [False]:
            if not reused:
                connection = self.connect()
            try:
                connection.request("GET", "/agents", headers=self.headers(request_id))
                response = connection.getresponse()
            except (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError):
                connection.close()
                if not reused:
                    raise
                # Closed between two requests (RFC 9112 section 9.3.1): tried again on a new connection.
                with self.ledger.lock:
                    self.ledger.reconnects += 1
                continue
            whole(response)
            if response.will_close:
                connection.close()
            else:
                with self.spare_lock:
                    self.spare.append(connection)
            return

    def whole(self, request_id: str) -> None:
        """A run that is not streamed."""
        answer = json.loads(self.post("assistant", "false", request_id))
        if answer.get("status") != "COMPLETED":
            raise Broken(f"run ended as {answer.get('status')}: {str(answer)[:200]}")

    def stream(self, request_id: str) -> None:
        """A run that streams; it must come to its own end."""
        text = self.post("researcher-slow", "true", request_id).decode(errors="replace")
        names = re.findall(r"^event: (\S+)", text, re.MULTILINE)
        if "error" in names:
            raise Broken(f"stream ended in an error event: {text[-300:]!r}")
        if "RunCompleted" not in names:
            raise Broken(f"stream was cut after {len(names)} events")

    def tool(self, request_id: str) -> None:
        """A slow run as a tool call over MCP, with progress; its result must come."""
        meta = {"progressToken": "load", f"{MCP_META}/protocolVersion": MCP_REVISION}
        meta |= {f"{MCP_META}/clientCapabilities": {}, f"{MCP_META}/clientInfo": {"name": "load", "version": "1"}}
        arguments = {"agent": "researcher-slow", "kind": "agent", "message": "hello"}
        params = {"name": "run_agent", "arguments": arguments, "_meta": meta}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": MCP_REVISION}
        headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "run_agent", "Content-Type": "application/json"}
        text = self.send("/mcp", json.dumps(message), headers, request_id).decode(errors="replace")
        told = [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data: {")]
        last = told[-1] if told else json.loads(text)
        if last.get("result", {"isError": True}).get("isError"):
            raise Broken(f"the call ended as {str(last)[:300]}")

    def post(self, agent: str, stream: str, request_id: str) -> bytes:
        """Starts a run and reads the whole answer."""
        body = urlencode({"message": "hello", "stream": stream})
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.send(f"/agents/{agent}/runs", body, headers, request_id)

    def send(self, path: str, body: str, headers: dict[str, str], request_id: str) -> bytes:
        """Posts on a connection of its own and reads the whole answer."""
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request("POST", path, body, {**self.headers(request_id), **headers, "Connection": "close"})
            return whole(connection.getresponse())


def whole(response: http.client.HTTPResponse) -> bytes:
    """The body of an answer that must be good."""
    body = response.read()
    if response.status != 200:
        raise Broken(f"answered {response.status}: {body[:200]!r}")
    return body


# === the changes ===


@dataclass
class Change:
    """Something that happened to the stack, and when."""

    name: str
    at: float = 0.0
    note: str = ""
    done: bool = False


class Changes:
    """Changes the running stack, one thing after the other."""

    def __init__(self, stack: stacks.Stack, certificates: Certificates | None) -> None:
        self.stack, self.certificates = stack, certificates
        self.made: list[Change] = []

    def make(self, name: str, work) -> None:
        """Makes a change; what is not supported is named."""
        change = Change(name, time.time())
        self.made.append(change)
        note = work()
        change.done, change.note = note is None, note or ""
        print(f"  {name}: {'done' if change.done else 'NOT PLAYED, ' + change.note}", flush=True)

    def gateway_pid(self) -> int:
        """The process that serves now: of the gateway's group, the one with the listening socket."""
        port = int(self.stack.listen.rpartition(":")[2])
        for pid in group(self.stack.gateway.process.pid):
            if port in listening_ports(pid):
                return pid
        raise Broken("no process of the gateway listens")

    def policies(self) -> str | None:
        """SIGHUP with the same policies."""
        return self.hang_up()

    def tenant(self) -> str | None:
        """A tenant is written into the configuration; its token must be served then."""
        token = self.mint("umbrella")
        if self.status(token) == 200:
            raise Broken("the new tenant was served before it existed")
        self.stack.config.write_text(self.stack.config.read_text() + NEW_TENANT)
        self.hang_up()
        token = self.mint("umbrella")
        served = wait_for(lambda: self.status(token) == 200, 5.0)
        return None if served else "SIGHUP does not read the configuration again"

    def certificate(self) -> str | None:
        """Another certificate in the same files; new connections must see it."""
        if not self.certificates:
            return "no `openssl`"
        old = self.certificates.shown(self.stack.listen)
        self.certificates.make()
        self.hang_up()
        changed = wait_for(lambda: self.certificates.shown(self.stack.listen) != old, 5.0)
        return None if changed else "SIGHUP does not read certificates again"

    def upgrade(self) -> str | None:
        """SIGUSR2: another process takes the sockets over, the first ends its streams and goes."""
        old = self.gateway_pid()
        if not catches(old, signal.SIGUSR2):
            return "the binary does not handle SIGUSR2"
        send(old, signal.SIGUSR2)
        other = wait_for(lambda: any(pid != old and self.listens(pid) for pid in group(self.stack.gateway.process.pid)), 20.0)
        if not other:
            raise Broken("no other process took the sockets over")
        gone = wait_for(lambda: not alive(old), PATIENCE_S)
        return None if gone else "the old process did not end"

    def listens(self, pid: int) -> bool:
        return int(self.stack.listen.rpartition(":")[2]) in listening_ports(pid)

    def kill(self) -> str | None:
        """SIGKILL to one replica of two."""
        replica = self.stack.replicas.pop()
        self.stack.children.remove(replica)
        self.killed = f"127.0.0.1:{stacks.listening(replica)}"
        replica.signal_group(signal.SIGKILL)
        replica.process.wait()
        self.dead_at = time.time()
        return None

    def hang_up(self) -> None:
        """SIGHUP, and time for it to be read."""
        send(self.gateway_pid(), signal.SIGHUP)
        time.sleep(1.0)

    def mint(self, tenant: str) -> str:
        """A token of a tenant, whether the gateway knows it or not."""
        key = self.stack.environment["TOLLBRIDGE_JWT_KEY"]
        return hs256({"iss": "https://demo.tollbridge.local", "aud": "tollbridge", "sub": "uma", "tenant": tenant, "roles": ["operator"], "exp": int(time.time()) + 600}, key)

    def status(self, token: str) -> int:
        """How a read with this token is answered."""
        host, _, port = self.stack.listen.rpartition(":")
        made = http.client.HTTPSConnection(host, int(port), timeout=5, context=trusting()) if self.certificates else http.client.HTTPConnection(host, int(port), timeout=5)
        with contextlib.closing(made) as connection:
            connection.request("GET", "/agents", headers={"Authorization": f"Bearer {token}", "X-Request-Id": "load-probe"})
            return connection.getresponse().status


class Certificates:
    """Self-signed certificates, made anew in the same files."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.make()

    def make(self) -> None:
        """Another key and certificate; each file is replaced at once."""
        made = [path.with_suffix(path.suffix + ".new") for path in (self.certificate, self.key)]
        stacks.make_certificate(*made)
        made[0].replace(self.certificate)
        made[1].replace(self.key)

    def shown(self, address: str) -> str:
        """The certificate that a new connection is shown."""
        host, _, port = address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)), timeout=5)


def trusting() -> ssl.SSLContext:
    """A client that believes every certificate: what is tested is that connections work."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def hs256(claims: dict[str, object], key: str) -> str:
    """A token, signed here: `tollbridge token` refuses tenants that are not configured."""
    part = lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()  # noqa: E731
    text = ".".join(part(json.dumps(value).encode()) for value in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{text}.{part(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest())}"


def wait_for(check, patience_s: float) -> bool:
    """Polls until it holds."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if check():
                return True
        time.sleep(0.1)
    return False


def group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == leader and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def listening_ports(pid: int) -> set[int]:
    """The TCP ports that a process listens on."""
    sockets = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(entry.readlink().name)
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; the default action of most is the end."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE).group(1), 16)
    return bool(caught >> (number - 1) & 1)


def alive(pid: int) -> bool:
    """Whether a process lives."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def send(pid: int, number: signal.Signals) -> None:
    """Signals a process of this stack."""
    os.kill(pid, number)


# === the verdict ===


def judge(ledger: Ledger, changes: Changes, log: Path) -> bool:
    """Says what failed and whether it may."""
    lines = {}
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            lines[entry.get("request_id")] = entry
    kinds = Counter(outcome.kind for outcome in ledger.outcomes)
    print(f"  {len(ledger.outcomes)} requests: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    print(f"  kept connections found closed and replaced: {ledger.reconnects}; latest start {ledger.late_s:.2f} s after its time")
    kill = next((change for change in changes.made if change.name.startswith("kill")), None)
    failed = [outcome for outcome in ledger.outcomes if outcome.failure]
    excused, unexcused = [], []
    for outcome in failed:
        entry = lines.get(outcome.request_id, {})
        endpoint = str(entry.get("endpoint", ""))
        on_it = kill is not None and changes.killed in endpoint and outcome.began <= kill.at + 1.0 and outcome.ended >= kill.at
        (excused if on_it else unexcused).append((outcome, entry))
    in_flight = sum(1 for outcome in ledger.outcomes if kill and outcome.began <= changes.dead_at and outcome.ended >= kill.at and changes.killed in str(lines.get(outcome.request_id, {}).get("endpoint", "")))
    if kill:
        print(f"  in flight on the killed replica: {in_flight}; failed with it: {len(excused)}")
        for outcome, entry in excused:
            print(f"  failed with it: {outcome.kind}, {outcome.began - kill.at:+.2f} to {outcome.ended - kill.at:+.2f} s of the kill: {entry.get('code')}: {outcome.failure[:100]}")
    for outcome, entry in unexcused[:10]:
        at = next((change.name for change in reversed(changes.made) if change.at <= outcome.ended), "before all")
        print(f"  FAILED {outcome.kind} ({outcome.request_id}, after {at}): {outcome.failure[:300]} · log: {entry.get('code')} {entry.get('endpoint')} {entry.get('reason')}")
    print(f"  failed without that excuse: {len(unexcused)}")
    return not unexcused and len(excused) <= max(in_flight, 0)


def prepare(stack: stacks.Stack, folder: Path) -> Certificates | None:
    """Writes the access log to a file, gives the plan room, and puts TLS on the listener where it can."""
    certificates = Certificates(folder) if shutil.which("openssl") else None
    original = stack.private_config

    def configured(shipped, wanted, bound) -> Path:
        path = original(shipped, wanted, bound)
        text = path.read_text()
        text, logs = re.subn(r'^access_log = .*$', f'access_log = {{ file = "{folder / "access.jsonl"}" }}', text, flags=re.MULTILINE)
        text, plans = re.subn(r"(?m)^requests = .*$", "requests = { per_second = 1_000, burst = 1_000 }", text)
        text = re.sub(r"(?m)^concurrent_runs = .*$", "concurrent_runs = 1_000", text)
        text = re.sub(r"(?m)^flood = .*$", "flood = { per_second = 1_000, burst = 1_000 }", text)
        if not logs or not plans:
            raise stacks.StackError("config.toml has no `access_log` or no `requests` to replace")
        if certificates:
            tls = f'tls = {{ certificate = "{certificates.certificate}", key = "{certificates.key}" }}\n'
            text = text.replace("[server.limits]", tls + "\n[server.limits]", 1)
            text = text.replace(f'public_url = "http://{stack.listen}"', f'public_url = "https://{stack.listen}"')
        path.write_text(text)
        return path

    stack.private_config = configured
    return certificates


def main() -> int:
    """Plays the load; 0 when nothing failed that may not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agno", default="3.1.10")
    parser.add_argument("--seconds", type=float, default=75.0, help="length of the load; at least 60")
    wanted = parser.parse_args()
    if wanted.seconds < 60:
        parser.error("a load below 60 s shows too little")
    stack = stacks.Stack(wanted.agno, True, stacks.PEOPLE, (STREAM_CHUNKS, STREAM_DELAY_S))
    try:
        certificates = prepare(stack, stack.folder)
        with stack:
            return 0 if play(stack, certificates, wanted.seconds) else 1
    except (stacks.StackError, Broken) as error:
        print(error, file=sys.stderr)
        return 2


def play(stack: stacks.Stack, certificates: Certificates | None, seconds: float) -> bool:
    """The load with its changes, then the verdict."""
    changes = Changes(stack, certificates)
    load = Load(stack, trusting() if certificates else None, seconds)
    print(f"{seconds:.0f} s over two replicas of agno {stack.agno}, {'TLS' if certificates else 'plain'}", flush=True)
    threads = load.run()
    steps = [
        ("policies reloaded", changes.policies),
        ("configuration reloaded", changes.tenant),
        ("certificate reloaded", changes.certificate),
        ("binary upgraded", changes.upgrade),
        ("kill -9 of one replica", changes.kill),
    ]
    pause = (seconds - 15.0) / len(steps)
    for number, (name, work) in enumerate(steps):
        time.sleep(max(0.0, load.started + 5.0 + number * pause - time.monotonic()))
        changes.make(name, work)
    for thread in threads:
        thread.join(PATIENCE_S + seconds)
    time.sleep(1.0)
    return judge(load.ledger, changes, stack.folder / "access.jsonl")


if __name__ == "__main__":
    sys.exit(main())
