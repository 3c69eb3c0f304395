"""Finds a Node.js and installs pinned npm packages into a folder of the repository.

Does not run anything in them. Invariant: `node_modules/tollbridge.stamp` exists only beside a complete installation and
names the `package.json` that it was made from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import venvs

# What the inspector and the conformance suites ask for.
MAJOR_MIN = 22
INSTALL_DEADLINE_S = 600


class NodeError(Exception):
    """Node.js or its packages could not be had; the text says why."""


def system_has_node() -> bool:
    """Whether the system's Node.js will do."""
    if not shutil.which("npm") or not shutil.which("node"):
        return False
    done = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=30, check=False)
    major = done.stdout.strip().removeprefix("v").split(".")[0]
    return major.isdigit() and int(major) >= MAJOR_MIN


def ensure(folder: Path) -> None:
    """Makes a Node.js come first in the search path of this process, and installs the packages of a folder once."""
    if not system_has_node():
        try:
            found = venvs.ensure("node").parent
        except venvs.VenvError as error:
            raise NodeError(str(error)) from None
        os.environ["PATH"] = f"{found}{os.pathsep}{os.environ.get('PATH', '')}"
    pins = hashlib.sha256((folder / "package.json").read_bytes()).hexdigest()
    stamp = folder / "node_modules" / "tollbridge.stamp"
    if stamp.is_file() and stamp.read_text() == pins:
        return
    # No lock file: it would carry the address of whatever registry this machine uses.
    command = ["npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    for attempt in (1, 2):
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=INSTALL_DEADLINE_S, check=False)
        if done.returncode == 0:
            stamp.write_text(pins)
            return
        print(f"node: npm install failed, attempt {attempt} of 2", file=sys.stderr, flush=True)
    raise NodeError(f"npm cannot install into {folder.name}: {done.stderr.strip()[-500:]}\nhelp: check the connection, then repeat")
