"""Runs every official MCP client against a Tollbridge that is up.

Prints `ok …` or `FAILED …` for each check; the status is 1 when one failed. Python clients run in the environments
`.venv-mcp-1` and `.venv-mcp-2`, the others in the system's Node.js or, where it has none of 22 or newer, in `.venv-node`.
Tokens may stand in MCP_TOKEN and MCP_VIEWER_TOKEN instead of on the command line. Where TOLLBRIDGE_BIN names the binary, the
Python clients also connect through `tollbridge mcp`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))

import node  # noqa: E402
import venvs  # noqa: E402

CLIENT_DEADLINE_S = 180


def report(good: bool, what: str, why: str = "") -> bool:
    """Prints the line of a check."""
    print(f"ok {what}" if good else f"FAILED {what}: {why}", flush=True)
    return good


def run(name: str, command: list[str]) -> bool:
    """Runs a client that prints its own lines; a client that hangs or prints nothing has failed."""
    try:
        done = subprocess.run(command, cwd=HERE, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=CLIENT_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return report(False, name, f"no end after {CLIENT_DEADLINE_S} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAILED "))]
    print("\n".join(lines), flush=True)
    if not lines or (done.returncode != 0 and not any(line.startswith("FAILED") for line in lines)):
        return report(False, name, f"status {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.returncode == 0


def inspector(what: str, url: str, token: str, arguments: list[str], wanted: str) -> bool:
    """One call of the inspector's command line; its output has to hold a text."""
    name = f"inspector --cli: {what}"
    command = [str(HERE / "node_modules/.bin/mcp-inspector"), "--cli", url, "--transport", "http"]
    command += ["--header", f"Authorization: Bearer {token}", *arguments]
    try:
        done = subprocess.run(command, cwd=HERE, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=CLIENT_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return report(False, name, f"no end after {CLIENT_DEADLINE_S} s")
    good = done.returncode == 0 and wanted in done.stdout
    return report(good, name, f"status {done.returncode}: {(done.stderr + done.stdout).strip()[-500:]!r}")


def node_clients(url: str, token: str) -> bool:
    """The TypeScript libraries and the inspector."""
    try:
        node.ensure(HERE)
    except node.NodeError as error:
        return report(False, "typescript clients", str(error))
    good = True
    for library in ("sdk", "client"):
        good &= run(f"typescript {library}", ["node", str(HERE / "typescript_client.mjs"), library, url])
    run_agent = ["--method", "tools/call", "--tool-name", "run_agent"]
    run_agent += ["--tool-arg", "agent=assistant", "--tool-arg", "message=hello inspector"]
    lists = ["--method", "tools/list", "--strict"]
    good &= inspector("lists tools, strictly", url, token, lists, "run_agent")
    good &= inspector("lists tools, strictly, 2026-07-28", url, token, [*lists, "--protocol-era", "modern"], "run_agent")
    search = ["--method", "tools/call", "--tool-name", "search_knowledge", "--tool-arg", "query=when does the tollbridge open"]
    good &= inspector("searches knowledge", url, token, search, "opens at dawn")
    good &= inspector("runs an agent", url, token, run_agent, "echo: hello inspector")
    good &= inspector("runs an agent, 2026-07-28", url, token, [*run_agent, "--protocol-era", "modern"], "hello inspector")
    return good


def python_clients(environment: str, clients: list[tuple[str, str]], url: str) -> bool:
    """Runs clients, each a title and a script, in one of the pinned environments."""
    try:
        python = venvs.ensure(environment)
    except venvs.VenvError as error:
        return report(False, clients[0][0].format(environment), str(error))
    # Every one is played, also behind one that failed.
    played = [run(title.format(environment), [str(python), str(HERE / script), url]) for title, script in clients]
    return all(played)


def main() -> int:
    """Runs the clients one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the MCP endpoint, such as http://127.0.0.1:8080/mcp")
    parser.add_argument("--token", default=os.environ.get("MCP_TOKEN"), help="an operator's token")
    parser.add_argument("--viewer-token", default=os.environ.get("MCP_VIEWER_TOKEN"), help="a viewer's token")
    parser.add_argument("--no-node", action="store_true", help="leave the TypeScript clients out")
    arguments = parser.parse_args()
    if not arguments.token or not arguments.viewer_token:
        parser.error("give --token and --viewer-token, or MCP_TOKEN and MCP_VIEWER_TOKEN")
    os.environ["MCP_TOKEN"], os.environ["MCP_VIEWER_TOKEN"] = arguments.token, arguments.viewer_token
    good = True
    clients = [("python {}", "python_client.py"), ("python {}, asked", "elicitation_client.py")]
    if os.environ.get("TOLLBRIDGE_BIN"):
        clients.append(("python {} stdio", "stdio_client.py"))
    for name in ("mcp-1", "mcp-2"):
        good &= python_clients(name, clients, arguments.url)
    # The environments of the two agno releases hold fastmcp 2 and 4.
    for name in ("agno-2.5.6", "agno-3.1.10"):
        good &= python_clients(name, [("fastmcp of {}", "fastmcp_client.py")], arguments.url)
    if not arguments.no_node:
        good &= node_clients(arguments.url, arguments.token)
    print("clients: all passed" if good else "clients: some failed", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
