"""Judges what the conformance suites found: what fails must be exactly what a list says, no more and no less.

Does not run suites (`mcp`). The lists are YAML that the suites take as `--expected-failures`, with a rule of ours: each
line says why, `- scenario  # why` or `- scenario:check  # why`. Warnings of a suite count as failures.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LINE = re.compile(r"- (?P<scenario>[\w.\-]+)(?::(?P<check>[\w.$\-]+))? {2}# (?P<why>\S.*)")
FOLDER = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")
BAD = ("FAILURE", "WARNING")

Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Entry:
    """A scenario, or one check of it, that is known to fail."""

    scenario: str
    check: str | None
    why: str

    def __str__(self) -> str:
        return f"{self.scenario}:{self.check}" if self.check else self.scenario

    def covers(self, scenario: str, check: str) -> bool:
        """Whether a failure is this one."""
        return scenario == self.scenario and self.check in (None, check)


@dataclass
class Verdict:
    """The numbers of one suite, and what is wrong with them."""

    passed: int = 0
    failed: int = 0
    known: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether everything is as it is listed, and there was something at all."""
        return not self.problems and self.passed > 0


def entries(text: str) -> list[Entry]:
    """Reads a list. Raises ValueError for a line without a reason, and for one that says nothing new."""
    found: list[Entry] = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#") or line == "server:":
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise ValueError(f"this line is not `- scenario  # why` or `- scenario:check  # why`: {line}")
        entry = Entry(match["scenario"], match["check"], match["why"])
        if any(entry.scenario == other.scenario and (entry.check in (None, other.check) or not other.check) for other in found):
            raise ValueError(f"`{entry}` is on the list already")
        found.append(entry)
    return found


def results(folder: Path) -> Results:
    """What a suite has written down, by scenario."""
    read: Results = {}
    for file in sorted(folder.glob("*/checks.json")):
        match = FOLDER.fullmatch(file.parent.name)
        name = match["scenario"] if match else file.parent.name
        read[name] = json.loads(file.read_text())
    return read


def judge(found: Results, listed: list[Entry]) -> Verdict:
    """Compares what a suite found with what is listed."""
    verdict = Verdict()
    for scenario, checks in found.items():
        if not checks:
            verdict.problems.append(f"{scenario}: it ran no check")
        for check in checks:
            verdict.passed += check["status"] == "SUCCESS"
            if check["status"] not in BAD:
                continue
            if any(entry.covers(scenario, check["id"]) for entry in listed):
                verdict.known += 1
                continue
            verdict.failed += 1
            why = str(check.get("errorMessage") or check.get("description") or "").split("\n")[0]
            verdict.problems.append(f"{scenario}:{check['id']} failed: {why[:300]}")
    for entry in listed:
        bad = [check for check in found.get(entry.scenario, []) if check["status"] in BAD]
        if entry.scenario in found and not any(entry.covers(entry.scenario, check["id"]) for check in bad):
            verdict.problems.append(f"{entry} is listed as failing, but does not fail: take it off the list")
    return verdict


def unknown(listed: list[Entry], ran: set[str]) -> list[str]:
    """Listed scenarios that no suite has."""
    return [f"{entry} is listed, but no suite has it" for entry in listed if entry.scenario not in ran]
