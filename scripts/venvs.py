"""Creates the pinned virtual environments of this repository, several at a time.

Owns `.venv-<name>` in the repository root and the stamp inside each one. Does not run anything in them.
Invariant: a stamp exists only in a complete environment and names the requirements it was built from, so a
changed pin, another Python or an interrupted installation leads to a rebuild.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = {
    "agno-2.5.6": ROOT / "examples/agentos/requirements-agno-2.5.6.txt",
    "agno-3.1.10": ROOT / "examples/agentos/requirements-agno-3.1.10.txt",
    "mcp-1": ROOT / "tests/clients/requirements-mcp-1.txt",
    "mcp-2": ROOT / "tests/clients/requirements-mcp-2.txt",
    "conformance": ROOT / "tests/conformance/requirements.txt",
    "node": ROOT / "tests/clients/requirements-node.txt",
}
# Made only when asked for: where the system has no Node.js that will do, and for `make conformance-http`.
ON_DEMAND = {"node", "conformance"}
STAMP = "tollbridge.stamp"
INSTALL_DEADLINE_S = 1200


class VenvError(Exception):
    """An environment could not be made; the text says what to do."""


def directory(name: str) -> Path:
    """The folder of an environment."""
    return ROOT / f".venv-{name}"


def python(name: str) -> Path:
    """The interpreter inside an environment."""
    return directory(name) / "bin" / "python"


def wanted_stamp(name: str) -> str:
    """What the stamp of an up-to-date environment says."""
    digest = hashlib.sha256(REQUIREMENTS[name].read_bytes()).hexdigest()
    return f"{digest} python-{sys.version_info.major}.{sys.version_info.minor}\n"


def is_current(name: str) -> bool:
    """Whether the environment is complete and built from today's pins."""
    stamp = directory(name) / STAMP
    return python(name).exists() and stamp.is_file() and stamp.read_text() == wanted_stamp(name)


def ensure(name: str) -> Path:
    """Makes the environment if it is missing or outdated and returns its interpreter.

    A lock file lets two commands ask for the same environment at once: the second one waits.
    """
    if is_current(name):
        return python(name)
    lock_path = ROOT / f".venv-{name}.lock"
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(name):
            build(name)
    return python(name)


def build(name: str) -> None:
    """Builds the environment from nothing; the stamp is written last."""
    started = time.monotonic()
    say(f"creating .venv-{name} (downloads from the Python package index; about a minute)")
    shutil.rmtree(directory(name), ignore_errors=True)
    made = run([sys.executable, "-m", "venv", str(directory(name))])
    if made.returncode != 0:
        raise VenvError(
            f"cannot create a virtual environment: {last_line(made)}\n"
            "help: install the venv module of your Python, for example `apt-get install python3-venv`"
        )
    install = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--requirement", str(REQUIREMENTS[name])]
    done = run(install)
    if done.returncode != 0:
        say(f".venv-{name}: the first installation failed, trying once more")
        done = run(install)
    if done.returncode != 0:
        raise VenvError(f"cannot install into .venv-{name}:\n{done.stdout.strip()}\nhelp: check the connection, then repeat")
    (directory(name) / STAMP).write_text(wanted_stamp(name))
    say(f"created .venv-{name} in {time.monotonic() - started:.0f} s")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command with its output captured, within the deadline."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=INSTALL_DEADLINE_S,
        check=False,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a command printed."""
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else "no output"


def say(text: str) -> None:
    """Talks to the person, on stderr."""
    print(f"venvs: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Makes the environments that the command line names; all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="environments to make: " + ", ".join(REQUIREMENTS) + " (default: what `make test` needs)")
    names = parser.parse_args().names or [name for name in REQUIREMENTS if name not in ON_DEMAND]
    unknown = [name for name in names if name not in REQUIREMENTS]
    if unknown:
        parser.error(f"unknown environment `{unknown[0]}`; known: {', '.join(REQUIREMENTS)}")
    if sys.version_info < (3, 10):
        say(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
        return 2
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        for job in [pool.submit(ensure, name) for name in dict.fromkeys(names)]:
            try:
                job.result()
            except (VenvError, OSError, subprocess.TimeoutExpired) as error:
                say(str(error))
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
