"""Plays HTTP/2 and WebSocket conformance through the gateway and through HAProxy, side by side.

Owns the verdict: a case that HAProxy passes and the gateway fails is a failure; one that both fail is named. Does not
hold cases (`http2_cases`; the Autobahn suite comes from the package `kosoku`) and does not start targets (`targets`).
Status 0: no failure that HAProxy does not show. `--only http2|websocket`, `--verbose` prints every case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import targets
import venvs  # one of the scripts, where `targets` looks for them
import wire2
from http2_cases import CASES, Case, Peer


def play(case: Case, peer: Peer) -> tuple[bool, str]:
    """Plays one case; whether it holds, and what happened."""
    more = {} if case.preface is None else {"preface": case.preface}
    try:
        connection = wire2.Connection(peer.address, polite=case.polite, **more)
    except OSError as error:
        return False, f"no connection: {error}"
    with contextlib.closing(connection):
        case.play(connection, peer)
        seen = connection.watch(until=lambda seen: case.holds(seen) and not waits(case))
        return case.holds(seen), seen.describe(case.stream)


def waits(case: Case) -> bool:
    """Whether what must not come has to be waited for."""
    return case.section.startswith("9113 6.9") and "window" in case.text or "is not answered" in case.text


def http2(verbose: bool) -> tuple[int, int]:
    """Plays the table on both; how many held on the gateway, and how many failed there alone."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(targets.folder())
        upstream = stack.enter_context(targets.upstream())
        port, token = stack.enter_context(targets.gateway(upstream, folder))
        two, _ = stack.enter_context(targets.haproxy(upstream, upstream, folder))
        ours, theirs = Peer(("127.0.0.1", port), token), Peer(("127.0.0.1", two), token)
        held = alone = both = theirs_alone = 0
        for case in CASES:
            (good, what), (their_good, their_what) = play(case, ours), play(case, theirs)
            held += good
            alone += not good and their_good
            both += not good and not their_good
            theirs_alone += good and not their_good
            if verbose or not good:
                word = "ok" if good else "both fail" if not their_good else "FAILED"
                print(f"  {word:<9} RFC {case.section:<12} {case.text}\n            gateway: {what}; HAProxy: {their_what}")
        print(f"HTTP/2: {len(CASES)} cases; the gateway fails {alone + both}, {alone} of them alone; HAProxy fails {both + theirs_alone}, {theirs_alone} of them alone")
        return held, alone


def websocket(verbose: bool) -> tuple[int, int]:
    """Plays the Autobahn cases on the gateway's codec, and through HAProxy on an echo of another library."""
    python = str(venvs.ensure("conformance"))
    script = str(Path(__file__).parent / "websocket.py")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(targets.folder())
        ours = stack.enter_context(targets.announcing([str(targets.echo_binary())]))
        behind = stack.enter_context(targets.announcing([python, script, "echo"]))
        _, theirs = stack.enter_context(targets.haproxy(behind, behind, folder))
        mine, other = suite(python, script, ours), suite(python, script, theirs)
    alone = {case for case, result in mine.items() if not result["passed"] and other.get(case, {}).get("passed", True)}
    both = {case for case, result in mine.items() if not result["passed"]} - alone
    theirs_alone = {case for case, result in other.items() if not result["passed"] and mine.get(case, {}).get("passed", True)}
    for case, result in mine.items():
        if verbose or not result["passed"]:
            word = "ok" if result["passed"] else "FAILED" if case in alone else "both fail"
            print(f"  {word:<9} Autobahn {case:<8} {result['behavior']}, close {result['close']}: {result['why']}")
    print(
        f"WebSocket: {len(mine)} cases; the gateway fails {len(alone) + len(both)}, {len(alone)} of them alone; "
        f"HAProxy fails {len(both) + len(theirs_alone)}, {len(theirs_alone)} of them alone"
    )
    if not mine or len(mine) != len(other):
        raise targets.TargetError(f"the suite played {len(mine)} and {len(other)} cases; help: run {script} by hand")
    return len(mine) - len(alone) - len(both), len(alone)


def suite(python: str, script: str, port: int) -> dict[str, dict[str, object]]:
    """The results of one target, by case."""
    done = subprocess.run([python, script, "play", f"ws://127.0.0.1:{port}"], capture_output=True, text=True, timeout=280, check=False)
    if done.returncode != 0:
        raise targets.TargetError(f"the WebSocket suite could not be played:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


def main() -> int:
    """Plays what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["http2", "websocket"])
    parser.add_argument("--verbose", action="store_true")
    wanted = parser.parse_args()
    passed = failed = 0
    try:
        if wanted.only != "websocket":
            held, alone = http2(wanted.verbose)
            passed, failed = passed + held, failed + alone
        if wanted.only != "http2":
            held, alone = websocket(wanted.verbose)
            passed, failed = passed + held, failed + alone
    except targets.TargetError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
