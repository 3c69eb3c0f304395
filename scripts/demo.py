"""Runs the example for a person (`demo`), the tour (`tour`), MCP clients (`clients`) or conformance suites (`conformance`).

Standard library only, Python 3.10 or newer. Ends with status 0, or 1 when something failed.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import tour
import venvs
from stack import PEOPLE, ROOT, TOUR_PERSON, Stack, StackError, seed_knowledge

NEWEST = "3.1.10"
FOLDER = ROOT / ".demo"
ENVIRONMENT = FOLDER / "environment"


class Stopped(BaseException):
    """A signal asked this process to end."""


def stop_on_signals() -> None:
    """Turns the signals that end a process into an exception, once; later ones wait for the clean-up."""

    def stop(number: int, _frame: object) -> None:
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def say(text: str = "") -> None:
    """Talks to the person."""
    print(text, flush=True)


def run_demo(agno: str, own_ports: bool) -> int:
    """Starts everything, prints lines to paste, stays until it is told to stop."""
    people = {**PEOPLE, **TOUR_PERSON} if own_ports else PEOPLE
    with Stack(agno, own_ports, people, slow=(20, 0.25)) as stack:
        atexit.register(stack.stop)
        seed_knowledge(stack)
        write_secrets(stack)
        print_lines(stack)
        while True:
            stack.check_alive()
            time.sleep(0.5)


def write_secrets(stack: Stack) -> None:
    """Keeps tokens and secrets in files that only their owner can read, so that the printed lines stay short."""
    made_up = [f"export {name}={value}\n" for name, value in stack.environment.items() if name not in os.environ]
    files = {token_file(name): token for name, token in stack.tokens.items()}
    files[ENVIRONMENT] = "".join(made_up)
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    atexit.register(remove_secrets, list(files))
    for path, text in files.items():
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)


def remove_secrets(paths: list[Path]) -> None:
    """Takes the files away again."""
    for path in paths:
        path.unlink(missing_ok=True)


def token_file(name: str) -> Path:
    """The file with somebody's token."""
    return FOLDER / f"{name}.token"


def bearer(name: str) -> str:
    """The curl option that carries somebody's token."""
    return f'-H "Authorization: Bearer $(cat {shlex.quote(str(token_file(name)))})"'


def print_lines(stack: Stack) -> None:
    """Prints what a person can try, ready to paste."""
    origin, token = stack.origin, stack.tokens["alice"]
    say(f"Tollbridge stands in front of two AgentOS replicas (agno {stack.agno}). Ctrl-C stops everything.")
    say(f"\n  API      {origin}")
    say(f"  MCP      {stack.mcp_url}")
    say(f"  metrics  {stack.admin}/metrics")
    say(f"  logs     {stack.folder}")
    say("\nPeople; their tokens are valid for 12 hours and stand in .demo/:")
    for name, person in stack.people.items():
        say(f"  {name:<6} {person.role} of tenant {person.tenant}")
    say("\nRun an agent:")
    say(f"  curl {bearer('alice')} {origin}/agents/assistant/runs -d message=hello -d stream=false")
    say("\nThe same as a stream, from an agent that takes five seconds:")
    say(f"  curl -N {bearer('alice')} {origin}/agents/researcher-slow/runs -d message=hello")
    say("\nRefused, because vera is a viewer: viewers read, they do not run (403 forbidden):")
    say(f"  curl {bearer('vera')} {origin}/agents/assistant/runs -d message=hello -d stream=false")
    say("  and why: the access log names the stage and the reason, which callers are not told:")
    say(f"  grep '\"code\":\"forbidden\"' {shlex.quote(str(stack.gateway.stdout))} | tail -n 1")
    say("\nA token for somebody else, signed with the key of this demo:")
    say(f"  {another_token(stack)}")
    say("\nConnect Claude Code:")
    say(f'  claude mcp add --transport http tollbridge {stack.mcp_url} --header "Authorization: Bearer {token}"')
    say("\nConnect VS Code (.vscode/mcp.json):")
    headers = {"Authorization": f"Bearer {token}"}
    say("  " + json.dumps({"servers": {"tollbridge": {"type": "http", "url": stack.mcp_url, "headers": headers}}}))
    say("\nConnect Cursor (.cursor/mcp.json):")
    say("  " + json.dumps({"mcpServers": {"tollbridge": {"url": stack.mcp_url, "headers": headers}}}))
    say("\nWhat was counted:")
    say(f"  curl -s {stack.admin}/metrics | grep ^tollbridge_requests_total")


def another_token(stack: Stack) -> str:
    """The command that mints a token of another person."""
    environment, binary, config = (shlex.quote(str(path)) for path in (ENVIRONMENT, stack.binary, stack.config))
    return f"(. {environment} && {binary} token --config {config} --tenant globex --subject olga --role operator)"


def run_tour(agno: str) -> int:
    """Plays the tour on free ports; the number of failed steps decides the status."""
    with Stack(agno, True, {**PEOPLE, **TOUR_PERSON}, slow=(12, 0.1)) as stack:
        atexit.register(stack.stop)
        say(f"The tour: Tollbridge in front of two AgentOS replicas (agno {agno})")
        return tour.play(stack)


def run_clients(agno: str) -> int:
    """Lets the official MCP clients call the gateway on free ports."""
    with Stack(agno, True, PEOPLE, slow=(12, 0.1)) as stack:
        atexit.register(stack.stop)
        seed_knowledge(stack)
        command = [sys.executable, str(ROOT / "tests/clients/run.py"), "--url", stack.mcp_url]
        environment = {**os.environ, "MCP_TOKEN": stack.tokens["alice"], "MCP_VIEWER_TOKEN": stack.tokens["vera"]}
        environment["TOLLBRIDGE_BIN"] = str(stack.binary)
        return subprocess.run(command, env=environment, check=False).returncode


def run_conformance(agno: str) -> int:
    """Lets the public conformance suites call the gateway on free ports: as it is, then with what their fixtures need."""
    judge = [sys.executable, str(ROOT / "tests/conformance/mcp.py")]
    with Stack(agno, True, PEOPLE, slow=(12, 0.1)) as stack:
        atexit.register(stack.stop)
        binary = str(stack.binary)
        environment = {**os.environ, "MCP_TOKEN": stack.tokens["ada"]}
        as_it_is = subprocess.run([*judge, "--url", stack.mcp_url], env=environment, check=False).returncode
    environment = {**os.environ, "TOLLBRIDGE_BIN": binary}
    with_fixtures = subprocess.run([*judge, "--fixtures"], env=environment, check=False).returncode
    return as_it_is or with_fixtures


def main() -> int:
    """Parses the command line and reports what went wrong in one place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["demo", "tour", "clients", "conformance"], default="demo")
    parser.add_argument("--agno", choices=["2.5.6", NEWEST], default=NEWEST, help=f"agno release (default {NEWEST})")
    parser.add_argument("--free-ports", action="store_true", help="demo: take free ports instead of the configured ones")
    arguments = parser.parse_args()
    stop_on_signals()
    try:
        if arguments.what == "tour":
            return run_tour(arguments.agno)
        if arguments.what == "clients":
            return run_clients(arguments.agno)
        if arguments.what == "conformance":
            return run_conformance(arguments.agno)
        return run_demo(arguments.agno, arguments.free_ports)
    except Stopped:
        say("\nstopped")
        return 0 if arguments.what == "demo" else 1
    except (StackError, venvs.VenvError, OSError, subprocess.SubprocessError) as error:
        print(f"{arguments.what}: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
