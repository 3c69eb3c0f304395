"""Builds the release binary, guided by a profile of itself at work (profile-guided optimization).

Owns the three steps: build with counters, put to work (`training`), build with what was counted. Does not measure
(`benches/`). Run it by `make release`; the binary's path is the last line, and all that `--path` says. A later run takes
what is still true of an earlier one. Without a tool that reads the compiler's profiles nothing is built: a binary that is
a third slower would pass for the real one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import training

ROOT = training.ROOT
FLAGS_APART = "\x1f"


class ReleaseError(Exception):
    """The binary cannot be built; the text says why and what to do."""


class Compiler:
    """What `rustc` says of itself."""

    def __init__(self) -> None:
        if not shutil.which("rustc"):
            raise ReleaseError("rustc is missing\nhelp: install a Rust toolchain, https://rustup.rs")
        said = ask("rustc", "-vV")
        self.host = re.search(r"^host: (\S+)", said, re.M)[1]
        self.llvm = int(re.search(r"^LLVM version: (\d+)", said, re.M)[1])
        self.sysroot = Path(ask("rustc", "--print", "sysroot").strip())

    def profile_tool(self) -> str:
        """The `llvm-profdata` that reads this compiler's profiles: the toolchain's own, or one of the same LLVM."""
        own = self.sysroot / "lib" / "rustlib" / self.host / "bin" / "llvm-profdata"
        for tool in (os.environ.get("LLVM_PROFDATA"), str(own), f"llvm-profdata-{self.llvm}", "llvm-profdata"):
            if tool and shutil.which(tool) and self.reads(tool):
                return tool
        raise ReleaseError(
            f"no llvm-profdata of LLVM {self.llvm}, which this compiler's profiles need\n"
            f"help: `rustup component add llvm-tools`, or as root on Debian `apt-get install llvm-{self.llvm}`; "
            "`make build` builds without a profile"
        )

    def reads(self, tool: str) -> bool:
        version = re.search(r"LLVM version (\d+)", ask(tool, "--version"))
        return bool(version) and int(version[1]) == self.llvm


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Release:
    """The folders of a release build, and its steps."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler, self.tool = compiler, compiler.profile_tool()
        metadata = ask("cargo", "metadata", "--format-version", "1", "--no-deps", "--manifest-path", str(ROOT / "Cargo.toml"))
        self.folder = Path(json.loads(metadata)["target_directory"]) / "guided"
        self.profile = self.folder / "tollbridge.profdata"
        self.binary = self.folder / "tollbridge"

    def build(self) -> Path:
        """All steps; gives the binary."""
        print("release: 1 of 3, building with counters", flush=True)
        counting = self.cargo("counting", f"-Cprofile-generate={self.folder / 'raw'}")
        if not self.profile.is_file() or self.profile.stat().st_mtime < counting.stat().st_mtime:
            self.train(counting)
        print("release: 3 of 3, building with what was counted", flush=True)
        guided = self.cargo("guided", f"-Cprofile-use={self.profile}")
        # Whoever runs the old one keeps it.
        new = self.binary.with_suffix(".new")
        shutil.copy2(guided, new)
        new.replace(self.binary)
        return self.binary

    def cargo(self, folder: str, flag: str) -> Path:
        given = os.environ.get("CARGO_ENCODED_RUSTFLAGS") or FLAGS_APART.join(os.environ.get("RUSTFLAGS", "").split())
        flags = FLAGS_APART.join(filter(None, [given, flag]))
        # With a target of its own, what runs while building (build scripts, macros) is not compiled with the flag.
        command = ["cargo", "build", "--release", "--locked", "--bin", "tollbridge", "--target", self.compiler.host]
        environment = {**os.environ, "CARGO_ENCODED_RUSTFLAGS": flags, "CARGO_TARGET_DIR": str(self.folder / folder)}
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            raise ReleaseError("cargo could not build Tollbridge; its messages stand above")
        return self.folder / folder / self.compiler.host / "release" / "tollbridge"

    def train(self, binary: Path) -> None:
        """Counts what runs when the gateway works."""
        raw = self.folder / "raw"
        shutil.rmtree(raw, ignore_errors=True)
        print(f"release: 2 of 3, working for {training.SECONDS:.0f} s", flush=True)
        calls = training.train(binary, {"LLVM_PROFILE_FILE": str(raw / "%p.profraw")})
        files = sorted(raw.glob("*.profraw"))
        if not files:
            raise ReleaseError("the gateway wrote no profile: it did not end by itself")
        print(f"release: {calls} calls", flush=True)
        subprocess.run([self.tool, "merge", "-o", self.profile, *files], check=True)
        shutil.rmtree(raw)


def main() -> int:
    try:
        release = Release(Compiler())
        print(release.binary if sys.argv[1:] == ["--path"] else release.build())
    except (ReleaseError, training.TrainingError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
