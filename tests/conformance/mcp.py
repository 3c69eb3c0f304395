"""Runs the public MCP conformance suites: against an endpoint as it is, or against one with what their fixtures need.

    mcp.py --url URL     the endpoint as it is; a token of an administrator stands in MCP_TOKEN
    mcp.py --fixtures    a gateway of its own before a fake AgentOS, reached under the names of the fixtures

What fails must be exactly what the list says: `needs-fixture.yml` for the first, `expected-failures.yml` for the second; the
status is 1 when it is not. README.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))

import node  # noqa: E402
import verdict  # noqa: E402
from naming import Forwarder, Names  # noqa: E402
from stand import StackError, Stand  # noqa: E402

SUITE_DEADLINE_S = 300
# Name, package, arguments.
SUITES = [
    ("0.1.16 all", "conformance-0.1", ["--suite", "all"]),
    ("0.2.0 2025-11-25", "conformance-0.2", ["--requirements", "2025-11-25"]),
    ("0.2.0 2026-07-28", "conformance-0.2", ["--requirements", "2026-07-28"]),
]


def run(package: str, arguments: list[str], url: str, verbose: bool) -> verdict.Results:
    """Runs one suite and gives what it found; nothing when it came to no end."""
    script = HERE / "node_modules" / package / "dist" / "index.js"
    with tempfile.TemporaryDirectory() as folder:
        command = ["node", str(script), "server", "--url", url, *arguments, "-o", folder]
        try:
            # Its status says whether everything passed, which is not what is asked here.
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=SUITE_DEADLINE_S, check=False)
        except subprocess.TimeoutExpired:
            print(f"  no end after {SUITE_DEADLINE_S} s", flush=True)
            return {}
        found = verdict.results(Path(folder))
    if verbose or not found:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    return found


def play(what: str, forwarder: Forwarder, listed: list[verdict.Entry], verbose: bool) -> bool:
    """Runs all suites, one after the other, and prints a line for each."""
    good, ran = True, set()
    for name, package, arguments in SUITES:
        found = run(package, arguments, forwarder.url, verbose)
        said = verdict.judge(found, listed)
        ran |= found.keys()
        good &= said.good
        for problem in said.problems:
            print(f"  {problem}")
        numbers = f"{len(found)} scenarios, {said.passed} checks passed, {said.failed} failed, {said.known} fail as listed"
        print(f"{'ok' if said.good else 'FAILED'} conformance {name}, {what}: {numbers}", flush=True)
    for problem in verdict.unknown(listed, ran):
        print(f"FAILED conformance, {what}: {problem}", flush=True)
        good = False
    return good


@contextlib.contextmanager
def endpoint(url: str | None) -> Iterator[tuple[str, Forwarder, str]]:
    """What is to be judged, the way there, and the list of what fails there."""
    if url:
        yield "endpoint as it is", Forwarder(url, os.environ["MCP_TOKEN"], None), "needs-fixture.yml"
        return
    with Stand() as stand:
        names = Names(stand.blob())
        yield "with fixtures", Forwarder(stand.mcp_url, stand.tokens["ada"], names), "expected-failures.yml"


def main() -> int:
    """Judges one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--url", help="the MCP endpoint, such as http://127.0.0.1:8080/mcp")
    what.add_argument("--fixtures", action="store_true", help="start a gateway before a fake AgentOS")
    parser.add_argument("--verbose", action="store_true", help="print what the suites say")
    arguments = parser.parse_args()
    if arguments.url and not os.environ.get("MCP_TOKEN"):
        parser.error("set MCP_TOKEN")
    try:
        node.ensure(HERE)
    except node.NodeError as error:
        print(f"FAILED conformance: {error}", flush=True)
        return 1
    try:
        with endpoint(arguments.url) as (name, forwarder, file):
            listed = verdict.entries((HERE / file).read_text())
            return 0 if play(name, forwarder, listed, arguments.verbose) else 1
    except (StackError, ValueError, OSError) as error:
        print(f"FAILED conformance: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
