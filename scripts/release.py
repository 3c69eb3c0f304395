"""Builds the release binary, guided by a profile of itself at work (profile-guided optimization).

Owns the three steps: build with counters, put to work (`training`), build with what was counted. Does not measure
(`benches/`). Run it by `make release`; the binary's path is the last line, and all that `--path` says. A later run takes
what is still true of an earlier one. Without a tool that reads the compiler's profiles nothing is built: a binary that is
a third slower would pass for the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import stack as stacks
import training

ROOT = training.ROOT
FLAGS_APART = "\x1f"


class ReleaseError(Exception):
    """The binary cannot be built; the text says why and what to do."""


class Compiler:
    """What `rustc` says of itself."""

    def __init__(self) -> None:
        said = stacks.ask(["rustc", "-vV"])
        self.host = re.search(r"^host: (\S+)", said, re.M)[1]
        self.llvm = int(re.search(r"^LLVM version: (\d+)", said, re.M)[1])
        self.sysroot = Path(stacks.ask(["rustc", "--print", "sysroot"]).strip())

    def profile_tool(self) -> str:
        """The `llvm-profdata` that reads this compiler's profiles; installs it where that can be done unasked."""
        ways = [["rustup", "component", "add", "llvm-tools"]]
        if os.geteuid() == 0:
            ways.append(["apt-get", "install", "-y", "-qq", "--no-install-recommends", f"llvm-{self.llvm}"])
        tool = self.found()
        while not tool and ways:
            way = ways.pop(0)
            if shutil.which(way[0]):
                print(f"release: no llvm-profdata of LLVM {self.llvm}, trying `{' '.join(way)}`", file=sys.stderr)
                subprocess.run(way, cwd=ROOT, stdout=sys.stderr, check=False)
                tool = self.found()
        if not tool:
            raise ReleaseError(
                f"no llvm-profdata of LLVM {self.llvm}, which this compiler's profiles need\n"
                f"help: `rustup component add llvm-tools`, or on Debian `sudo apt-get install llvm-{self.llvm}`; "
                "`make build` builds without a profile"
            )
        return tool

    def found(self) -> str | None:
        """The toolchain's own, or one of the same LLVM."""
        own = self.sysroot / "lib" / "rustlib" / self.host / "bin" / "llvm-profdata"
        tools = (str(own), f"llvm-profdata-{self.llvm}", "llvm-profdata")
        return next((tool for tool in tools if shutil.which(tool) and self.reads(tool)), None)

    def reads(self, tool: str) -> bool:
        # Old ones end with an error when they are asked for their version.
        done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"LLVM version (\d+)", done.stdout)
        return bool(version) and int(version[1]) == self.llvm


class Release:
    """The folders of a release build, and its steps."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler, self.tool = compiler, compiler.profile_tool()
        self.folder = stacks.target_directory() / "guided"
        self.profile = self.folder / "tollbridge.profdata"
        self.raw = self.folder / "raw"
        self.binary = self.folder / "tollbridge"

    def build(self) -> Path:
        """All steps; gives the binary."""
        print("release: 1 of 3, building with counters", flush=True)
        counting = self.cargo("counting", f"-Cprofile-generate={self.raw}")
        if self.is_stale(counting):
            self.train(counting)
        print("release: 3 of 3, building with what was counted", flush=True)
        guided = self.cargo("optimized", f"-Cprofile-use={self.profile}")
        # Whoever runs the old one keeps it.
        new = self.binary.with_suffix(".new")
        shutil.copy2(guided, new)
        new.replace(self.binary)
        return self.binary

    def is_stale(self, counting: Path) -> bool:
        """Says whether anything is newer than the profile that was counted."""
        sources = [counting, Path(__file__), Path(training.__file__), *(ROOT / "policies").iterdir()]
        return not self.profile.is_file() or self.profile.stat().st_mtime < max(file.stat().st_mtime for file in sources)

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
        shutil.rmtree(self.raw, ignore_errors=True)
        print(f"release: 2 of 3, at work for {2 * training.SECONDS:.0f} s", flush=True)
        calls = training.train(binary, {"LLVM_PROFILE_FILE": str(self.raw / "%p.profraw")})
        files = sorted(map(str, self.raw.glob("*.profraw")))
        print(f"release: {calls} calls, {len(files)} profiles", flush=True)
        # cargo does not look into profiles: what was built with another one must go. And half a profile is none.
        shutil.rmtree(self.folder / "optimized", ignore_errors=True)
        new = self.profile.with_suffix(".new")
        stacks.ask([self.tool, "merge", "-o", str(new), *files])
        new.replace(self.profile)
        shutil.rmtree(self.raw)


def main() -> int:
    if sys.argv[1:] not in ([], ["--path"]):
        print("run it by `make release`; --path says where the binary is", file=sys.stderr)
        return 2
    # Whatever ends this ends what it started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        release = Release(Compiler())
        print(release.binary if sys.argv[1:] else release.build())
    except (ReleaseError, training.TrainingError, stacks.StackError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
