"""Owns a running example: two AgentOS replicas behind Tollbridge, their secrets, tokens and logs.

Does not print for people (`demo`) and does not judge (`tour`). Invariant: whatever ends this process, no child
survives it: children get their own process group, are stopped on every way out, and on Linux the kernel ends them
if this process is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import venvs
import wire

ROOT = venvs.ROOT
START_DEADLINE_S = 120.0
READY_DEADLINE_S = 30.0
STOP_DEADLINE_S = 45.0
LOG_TAIL_LINES = 15
PR_SET_PDEATHSIG = 1


class StackError(Exception):
    """The example cannot run; the text says why and what to do."""


@dataclass(frozen=True)
class Person:
    """Somebody with a token."""

    tenant: str
    role: str


PEOPLE = {
    "alice": Person("acme", "operator"),
    "vera": Person("acme", "viewer"),
    "adam": Person("acme", "approver"),
    "ada": Person("acme", "admin"),
    "gina": Person("globex", "operator"),
    "gus": Person("globex", "admin"),
}

# The tour needs a tenant that meets its limit after a few calls. Its configuration is a copy, so it may add one.
TOUR_PERSON = {"ian": Person("initech", "operator")}
TOUR_PLAN = """
[plans.tour-small]
requests = { per_minute = 3, burst = 3 }
concurrent_runs = 1
tokens = { per_day = 10_000 }

[tenants.initech]
plan = "tour-small"
"""


class ConfigText:
    """What the example has to know of a configuration file, read without a TOML library (Python 3.10 has none)."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise StackError(f"there is no {path}")
        lines = path.read_text().splitlines()
        self.text = "\n".join(line for line in lines if not line.lstrip().startswith("#")) + "\n"

    def section(self, name: str) -> str:
        """The lines of a table, such as `server` or `[clusters]`."""
        found = re.search(rf"^\[{re.escape(name)}\][^\n]*\n(.*?)(?=^\[|\Z)", self.text, re.MULTILINE | re.DOTALL)
        if not found:
            raise StackError(f"the configuration has no [{name}]")
        return found.group(1)

    def one(self, section: str, pattern: str, what: str) -> str:
        """The first group of a pattern in a table."""
        found = re.search(pattern, self.section(section), re.MULTILINE | re.DOTALL)
        if not found:
            raise StackError(f"the configuration names no {what} in [{section}]")
        return found.group(1)

    def listen(self, section: str) -> str:
        """The address that a listener binds."""
        return self.one(section, r'^listen\s*=\s*"([^"]+)"', "`listen`")

    def endpoints(self) -> list[str]:
        """The addresses of the first cluster's endpoints."""
        array = self.one("[clusters]", r"^endpoints\s*=\s*\[(.*?)\]", "`endpoints`")
        return re.findall(r'"http://([^"/]+)"', array)

    def audience(self) -> str:
        """The id that AgentOS expects in its tokens."""
        return self.one("[clusters]", r'audience\s*=\s*"([^"]+)"', "`audience` of the upstream token")

    def upstream_key(self) -> str:
        """The variable with the secret of the upstream tokens."""
        return self.one("[clusters]", r'key\s*=\s*\{\s*env\s*=\s*"([^"]+)"', "`key` of the upstream token")

    def variables(self) -> list[str]:
        """Every environment variable that the configuration refers to."""
        return sorted(set(re.findall(r'\benv\s*=\s*"([A-Za-z_][A-Za-z0-9_]*)"', self.text)))


class Child:
    """A process of the example with its log."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = log
        self.stdout = log.with_suffix(".out")
        with log.open("wb") as err, self.stdout.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=folder,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def tail(self) -> str:
        """The last lines that it said."""
        said = self.stdout.read_text(errors="replace").splitlines() + self.log.read_text(errors="replace").splitlines()
        return "\n".join("    " + line for line in said[-LOG_TAIL_LINES:]) or "    (it said nothing)"

    def check_alive(self) -> None:
        """Raises when it has ended."""
        status = self.process.poll()
        if status is not None:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise StackError(f"{self.name} {how}; its last lines:\n{self.tail()}")

    def wait_until(self, ready: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Polls until it is ready; raises when it dies or takes too long."""
        deadline = time.monotonic() + deadline_s
        while not ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise StackError(f"{self.name}: {what} took more than {deadline_s:.0f} s; its last lines:\n{self.tail()}")
            time.sleep(0.05)

    def signal_group(self, number: int) -> None:
        """Signals it and its own children."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """Asks it to end, then makes it end; returns its status."""
        if self.process.poll() is None:
            self.signal_group(signal.SIGTERM)
            try:
                self.process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                pass
        self.signal_group(signal.SIGKILL)
        return self.process.wait()


class Stack:
    """Two replicas, one gateway. Use it as a context manager."""

    def __init__(self, agno: str, own_ports: bool, people: dict[str, Person], slow: tuple[int, float]) -> None:
        self.agno = agno
        self.own_ports = own_ports
        self.people = people
        self.slow = slow
        self.folder = Path(tempfile.mkdtemp(prefix="tollbridge-"))
        self.children: list[Child] = []
        self.replicas: list[Child] = []
        self.tokens: dict[str, str] = {}
        self.config = ROOT / "config.toml"

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def origin(self) -> str:
        """Where callers reach Tollbridge."""
        return f"http://{self.listen}"

    @property
    def mcp_url(self) -> str:
        """Where MCP clients reach it."""
        return f"{self.origin}/mcp"

    @property
    def admin(self) -> str:
        """Where operators reach it."""
        return f"http://{self.admin_listen}"

    def start(self) -> None:
        """Builds, then starts the replicas and the gateway, then mints the tokens."""
        shipped = ConfigText(self.config)
        with ThreadPoolExecutor(max_workers=2) as pool:
            environment = pool.submit(venvs.ensure, f"agno-{self.agno}")
            self.binary = build_binary()
            python = environment.result()
        self.environment = dict(os.environ)
        for name in shipped.variables():
            self.environment.setdefault(name, secrets.token_hex(32))
        self.listen, self.admin_listen = shipped.listen("server"), shipped.listen("admin")
        wanted = shipped.endpoints()[:2]
        if len(wanted) < 2:
            raise StackError("the example needs two endpoints in the first cluster of the configuration")
        if not self.own_ports:
            for address in [self.listen, self.admin_listen, *wanted]:
                check_free(address)
        ports = [0, 0] if self.own_ports else [int(address.rpartition(":")[2]) for address in wanted]
        bound = [self.start_replica(number, port, python, shipped) for number, port in enumerate(ports, start=1)]
        if self.own_ports:
            self.config = self.private_config(shipped, wanted, bound)
        self.start_gateway()
        self.tokens = {name: self.mint(name, person) for name, person in self.people.items()}

    def start_replica(self, number: int, port: int, python: Path, shipped: ConfigText) -> int:
        """Starts one AgentOS and returns its port. One after the other: the first one creates the tables."""
        chunks, delay = self.slow
        environment = {
            **self.environment,
            "PORT": str(port),
            "DB": str(self.folder / "agentos.db"),
            "LANCE": str(self.folder / "vectors"),
            "AUTH": "1",
            "JWT_KEY": self.environment[shipped.upstream_key()],
            "OS_ID": shipped.audience(),
            "SLOW_CHUNKS": str(chunks),
            "SLOW_DELAY": str(delay),
        }
        command = [str(python), str(ROOT / "examples/agentos/app.py")]
        child = self.spawn(f"AgentOS replica {number}", f"agentos-{number}.log", command, environment)
        self.replicas.append(child)
        child.wait_until(lambda: listening(child) is not None, START_DEADLINE_S, "the start")
        return listening(child) or 0

    def start_gateway(self) -> None:
        """Starts Tollbridge and waits until it is ready."""
        command = [str(self.binary), "run", "--config", str(self.config)]
        self.gateway = self.spawn("Tollbridge", "tollbridge.log", command, self.environment)
        self.gateway.wait_until(lambda: answers(self.admin, "/readyz"), READY_DEADLINE_S, "getting ready")

    def private_config(self, shipped: ConfigText, wanted: list[str], bound: list[int]) -> Path:
        """A copy of the shipped configuration on free ports, with one more tenant, in the temporary folder."""
        self.listen, self.admin_listen = (f"127.0.0.1:{port}" for port in free_ports(2))
        replaced = {
            shipped.listen("server"): self.listen,
            shipped.listen("admin"): self.admin_listen,
            **{address: f"127.0.0.1:{port}" for address, port in zip(wanted, bound)},
        }
        text = (ROOT / "config.toml").read_text()
        text = re.sub("|".join(map(re.escape, replaced)), lambda found: replaced[found.group()], text)
        text, count = re.subn(r'^dir = "policies"', f'dir = "{ROOT / "policies"}"', text, flags=re.MULTILINE)
        if count != 1:
            raise StackError('config.toml has no line `dir = "policies"`')
        # A machine that is busy building must not look like an AgentOS that is down.
        text, count = re.subn(r'^(interval = "2s"\ntimeout = )"1s"', r'\1"10s"', text, flags=re.MULTILINE)
        if count != 1:
            raise StackError("config.toml has no `interval` and `timeout` of [clusters.health]")
        path = self.folder / "config.toml"
        path.write_text(text + TOUR_PLAN)
        return path

    def mint(self, name: str, person: Person) -> str:
        """A development token."""
        command = [str(self.binary), "token", "--config", str(self.config), "--tenant", person.tenant]
        command += ["--subject", name, "--role", person.role, "--ttl", "12h"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0 or not done.stdout.strip():
            raise StackError(f"`tollbridge token` for {name} ended with status {done.returncode}: {done.stderr.strip()}")
        return done.stdout.split()[-1]

    def http(self, name: str | None) -> wire.Http:
        """The HTTP door, as a person; nobody has no token."""
        return wire.Http(self.origin, self.tokens[name] if name else None)

    def spawn(self, name: str, log: str, command: list[str], environment: dict[str, str]) -> Child:
        """Starts a child that `stop` ends."""
        child = Child(name, command, self.folder / log, environment, self.folder)
        self.children.append(child)
        return child

    def check_alive(self) -> None:
        """Raises when a child has ended."""
        for child in self.children:
            child.check_alive()

    def lose_replica(self) -> None:
        """Stops the last replica, as an outage would."""
        replica = self.replicas.pop()
        self.children.remove(replica)
        replica.stop()

    def stop_gateway(self) -> int:
        """Asks the gateway to end and returns its status."""
        self.children.remove(self.gateway)
        return self.gateway.stop()

    def stop(self) -> None:
        """Ends the children, the gateway first so that it drains, and removes the temporary folder."""
        for child in reversed(self.children):
            child.stop()
        self.children.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def build_binary() -> Path:
    """Builds Tollbridge in the development profile, or takes the one that TOLLBRIDGE_BIN names."""
    if given := os.environ.get("TOLLBRIDGE_BIN"):
        return Path(given).resolve()
    if not shutil.which("cargo"):
        raise StackError("cargo is missing\nhelp: install a Rust toolchain, https://rustup.rs")
    done = subprocess.run(["cargo", "build", "--quiet", "--bin", "tollbridge"], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise StackError("cargo could not build Tollbridge; its messages stand above\nhelp: `make deps`")
    return target_directory() / "debug" / "tollbridge"


def target_directory() -> Path:
    """Where cargo builds."""
    return Path(json.loads(ask(["cargo", "metadata", "--format-version", "1", "--no-deps"]))["target_directory"])


def ask(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a command says; raises with its complaint when it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise StackError(f"{command[0]}: {error.strerror}\nhelp: `make deps` says what is missing") from None
    if done.returncode != 0:
        raise StackError(f"`{' '.join(command[:2])}`: {done.stderr.strip()}")
    return done.stdout


def make_certificate(certificate: Path, key: Path) -> None:
    """Makes a key and a certificate of its own for this machine's names."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    ask([*command, "-out", str(certificate), "-keyout", str(key)])


def stand_config(port: int, admin: int, upstream: int, *server: str) -> str:
    """The configuration that benchmarks stand on, with lines of one's own for the server. Secrets: `STAND_KEY`."""
    text = (ROOT / "benches" / "stand" / "gateway.toml").read_text()
    text = text.replace("[server]\n", "\n".join(["[server]", *server]) + "\n", 1)
    filled = {"PORT": port, "ADMIN": admin, "UPSTREAM": f"127.0.0.1:{upstream}", "POLICIES": ROOT / "policies"}
    for name, value in filled.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def die_with_parent() -> None:
    """Asks Linux to end this child when its parent dies; elsewhere the other ways have to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def listening(child: Child) -> int | None:
    """The port that a replica announced."""
    for line in child.stdout.read_text(errors="replace").splitlines():
        if line.startswith('{"listening"') and line.endswith("}"):
            return int(json.loads(line)["listening"])
    return None


def answers(origin: str, path: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return wire.Http(origin).get(path).status == 200
    except OSError:
        return False


def check_free(address: str) -> None:
    """Raises when somebody listens on an address already."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except OSError as error:
        raise StackError(
            f"cannot listen on {address}: {os.strerror(error.errno or 0).lower()}\n"
            "help: stop what uses the port, or run `make demo FREE_PORTS=1`"
        ) from None


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses right now, all different."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def seed_knowledge(stack: Stack) -> None:
    """Gives each tenant a document, through the gateway, as the tenant's admin; waits until both can be found."""
    for admin, name, text in [
        ("ada", "acme-handbook", "The acme tollbridge opens at dawn and closes at dusk."),
        ("gus", "globex-handbook", "The globex ferry departs every hour from the northern quay."),
    ]:
        door = stack.http(admin)
        answer = door.multipart("/knowledge/content", name=name, text_content=text)
        if answer.status != 202:
            raise StackError(f"the upload of {name} was answered with {answer.status}: {answer.body[:300]!r}")
        path = f"/knowledge/content/{answer.json()['id']}/status"
        deadline = time.monotonic() + READY_DEADLINE_S
        while (status := door.get(path).json()).get("status") != "completed":
            if status.get("status") == "failed" or time.monotonic() > deadline:
                raise StackError(f"{name} was not taken in: {status}")
            time.sleep(0.2)
