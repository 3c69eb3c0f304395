"""Runs two gateways, two AgentOS replicas and a Redis on this machine, for a person or for a proof.

Standard library only, Python 3.10 or newer. Whatever ends this process, no child survives it. Ends with status 0, or 1
when something failed.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import venvs  # noqa: E402
from demo import Stopped, say, stop_on_signals  # noqa: E402
from stack import (  # noqa: E402
    READY_DEADLINE_S,
    ConfigText,
    Person,
    Stack,
    StackError,
    answers,
    build_binary,
    check_free,
    free_ports,
)
from wire import Http  # noqa: E402

FILES = [ROOT / f"examples/cluster/gateway-{number}.toml" for number in (1, 2)]
PEOPLE = {"alice": Person("acme", "operator"), "ian": Person("initech", "operator")}
REQUESTS = 20
"""What the plan of initech grants in an hour."""
BATCHES = 2
"""How many more two gateways may grant: one leased request each (docs/quotas.md)."""
CANCELLED_WITHIN_S = 10.0


class Cluster(Stack):
    """Two gateways on one store. Use it as a context manager."""

    def start(self) -> None:
        """Starts Redis, the replicas and the gateways, then mints the tokens."""
        shipped = [ConfigText(path) for path in FILES]
        self.check_alike(shipped)
        self.binary = build_binary()
        python = venvs.ensure(f"agno-{self.agno}")
        self.environment = dict(os.environ)
        for name in shipped[0].variables():
            self.environment.setdefault(name, secrets.token_hex(32))
        self.environment["REDIS_URL"] = self.start_redis()
        wanted = shipped[0].endpoints()
        if not self.own_ports:
            listens = [text.listen(section) for text in shipped for section in ("server", "admin")]
            for address in [*listens, *wanted]:
                check_free(address)
        ports = [0, 0] if self.own_ports else [int(address.rpartition(":")[2]) for address in wanted]
        bound = [self.start_replica(number, port, python, shipped[0]) for number, port in enumerate(ports, start=1)]
        self.origins, self.admins = [], []
        for number, (path, text) in enumerate(zip(FILES, shipped), start=1):
            self.start_one(number, self.copy(number, path, text, dict(zip(wanted, bound))))
        self.config = self.folder / "gateway-1.toml"
        self.tokens = {name: self.mint(name, person) for name, person in self.people.items()}

    def check_alike(self, shipped: list[ConfigText]) -> None:
        """The two files differ in their addresses only, as the README says."""
        bare = [re.sub(r'127\.0\.0\.1:(808|909)\d|audit-\d', "", text.text) for text in shipped]
        if bare[0] != bare[1]:
            raise StackError("gateway-1.toml and gateway-2.toml differ in more than their addresses")

    def start_redis(self) -> str:
        """Starts a Redis on a socket in the temporary folder; returns its address."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if not program:
            raise StackError("redis-server is missing\nhelp: install Redis or Valkey, on Debian `apt-get install redis-server`")
        path = self.folder / "redis.sock"
        command = [program, "--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", str(path)]
        child = self.spawn("Redis", "redis.log", command, self.environment)
        child.wait_until(path.exists, READY_DEADLINE_S, "the start")
        return f"unix://{path}"

    def copy(self, number: int, path: Path, text: ConfigText, ports: dict[str, int]) -> Path:
        """The configuration in the temporary folder; on free ports where those are wanted."""
        replaced = {address: f"127.0.0.1:{port}" for address, port in ports.items()}
        if self.own_ports:
            fresh = [f"127.0.0.1:{port}" for port in free_ports(2)]
            replaced.update(zip([text.listen("server"), text.listen("admin")], fresh))
        config = re.sub("|".join(map(re.escape, replaced)), lambda found: replaced[found.group()], path.read_text())
        config = config.replace('dir = "../../policies"', f'dir = "{ROOT / "policies"}"')
        # A machine that is busy building must not look like an AgentOS that is down.
        config = config.replace('timeout = "1s"', 'timeout = "10s"')
        written = self.folder / f"gateway-{number}.toml"
        written.write_text(config)
        return written

    def start_one(self, number: int, config: Path) -> None:
        """Starts one gateway and waits until it is ready."""
        text = ConfigText(config)
        origin, admin = f"http://{text.listen('server')}", f"http://{text.listen('admin')}"
        command = [str(self.binary), "run", "--config", str(config)]
        child = self.spawn(f"gateway {number}", f"gateway-{number}.log", command, self.environment)
        child.wait_until(lambda: answers(admin, "/readyz"), READY_DEADLINE_S, "getting ready")
        self.origins.append(origin)
        self.admins.append(admin)

    def by(self, gateway: int, name: str) -> Http:
        """A person at one of the gateways."""
        return Http(self.origins[gateway], self.tokens[name])


class Broken(Exception):
    """A promise does not hold; the text says what was seen instead."""


def expect(condition: bool, otherwise: str) -> None:
    """Raises when a promise does not hold."""
    if not condition:
        raise Broken(otherwise)


def run_is_cancelled_by_the_other(cluster: Cluster) -> str:
    """A run that was started through one gateway is cancelled through the other, in both directions."""
    seen = []
    for first, second in [(0, 1), (1, 0)]:
        run, names, asked = "", [], 0.0
        # The other gateway sees the end in the database, where it looks the run up by its session.
        story = {"message": "a long story", "session_id": f"story-{first}"}
        for event in cluster.by(first, "alice").events("/agents/researcher-slow/runs", **story):
            names.append(event.name)
            if not run:
                run = str(event.data["run_id"])
                path = f"/agents/researcher-slow/runs/{run}/cancel?session_id={story['session_id']}"
                answer = cluster.by(second, "alice").form(path)
                expect(answer.status == 200, f"the cancel was answered {answer.status}: {answer.body[:300]!r}")
                asked = time.monotonic()
        took = time.monotonic() - asked
        # agno 3.1.10 says RunCompleted behind RunCancelled.
        expect("RunCancelled" in names[-2:], f"the stream ended with {names[-3:]}")
        expect(took < CANCELLED_WITHIN_S, f"the stream went on for {took:.1f} s")
        seen.append(f"{took:.1f} s")
    return f"both streams ended as RunCancelled, after {' and '.join(seen)}"


def one_run_at_a_time(cluster: Cluster) -> str:
    """A tenant with one concurrent run has one over both gateways."""
    events = cluster.by(0, "ian").events("/agents/researcher-slow/runs", message="mine")
    next(events)
    other = cluster.by(1, "ian").form("/agents/assistant/runs", message="another", stream="false")
    expect((other.status, other.code) == (429, "too_many_runs"), f"the second run was answered {other.status} {other.code}")
    last = [event.name for event in events][-1]
    expect(last == "RunCompleted", f"the first run ended with {last}")
    deadline = time.monotonic() + 5
    while (again := cluster.by(1, "ian").form("/agents/assistant/runs", message="now", stream="false")).status == 429:
        expect(time.monotonic() < deadline and again.code == "too_many_runs", f"still {again.code}")
        time.sleep(0.2)
    expect(again.status == 200, f"after the first run the second was answered {again.status}")
    return "the second gateway refused a second run, and took it when the first had ended"


def requests_are_counted_together(cluster: Cluster) -> str:
    """A tenant's requests are counted once, whichever gateway they come through."""
    answers_ = [cluster.by(sent % 2, "ian").get("/agents") for sent in range(3 * REQUESTS)]
    counts = [sum(a.status == 200 for a in answers_[gateway::2]) for gateway in (0, 1)]
    refused = [a for a in answers_ if a.status == 429]
    expect(len(refused) + sum(counts) == len(answers_), f"answers {sorted({a.status for a in answers_})}")
    # Two gateways that counted apart would have granted the limit each.
    expect(sum(counts) <= REQUESTS + BATCHES, f"{counts[0]} + {counts[1]} requests were granted, the plan has {REQUESTS}")
    expect(all(a.code == "rate_limited" and "retry-after" in a.headers for a in refused), "a refusal without its reason")
    expect(all(a.status == 429 for a in answers_[-2:]), "the last requests were granted")
    return f"{counts[0]} + {counts[1]} of {len(answers_)} requests were granted, then both gateways refused"


PROOFS = [run_is_cancelled_by_the_other, one_run_at_a_time, requests_are_counted_together]


def prove(cluster: Cluster) -> int:
    """Plays every proof and prints what it saw."""
    failed = 0
    for proof in PROOFS:
        title = (proof.__doc__ or "").splitlines()[0].rstrip(".")
        try:
            cluster.check_alive()
            print(f"✓ {title} — {proof(cluster)}", flush=True)
        except Exception as error:  # whatever a proof meets is its result; the next one still runs
            failed += 1
            print(f"✗ {title} — {type(error).__name__}: {error}", flush=True)
    print(f"cluster: {len(PROOFS) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def print_lines(cluster: Cluster) -> None:
    """Prints what a person can try."""
    token = cluster.tokens["alice"]
    say(f"Two gateways, two AgentOS replicas (agno {cluster.agno}), one Redis. Ctrl-C stops everything.\n")
    for number, (origin, admin) in enumerate(zip(cluster.origins, cluster.admins), start=1):
        say(f"  gateway {number}  {origin}  (metrics {admin}/metrics)")
    say(f"  logs       {cluster.folder}\n")
    say("A long run through the first gateway:")
    say(f'  curl -N -H "Authorization: Bearer {token}" {cluster.origins[0]}/agents/researcher-slow/runs -d message=hello -d session_id=s1')
    say("and its end through the second, with the run_id of its first event:")
    path = "/agents/researcher-slow/runs/RUN_ID/cancel?session_id=s1"
    say(f'  curl -X POST -H "Authorization: Bearer {token}" "{cluster.origins[1]}{path}"')


def main() -> int:
    """Parses the command line and reports what went wrong in one place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prove", action="store_true", help="prove on free ports what the gateways share, and end")
    parser.add_argument("--agno", choices=["2.5.6", "3.1.10"], default="3.1.10", help="agno release (default 3.1.10)")
    arguments = parser.parse_args()
    stop_on_signals()
    try:
        with Cluster(arguments.agno, arguments.prove, PEOPLE, slow=(40, 0.25)) as cluster:
            if arguments.prove:
                return prove(cluster)
            print_lines(cluster)
            while True:
                cluster.check_alive()
                time.sleep(0.5)
    except Stopped:
        say("\nstopped")
        return 1 if arguments.prove else 0
    except (StackError, venvs.VenvError, OSError, subprocess.SubprocessError) as error:
        print(f"cluster: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
