"""Tests of the verdict: a suite fails for an unexpected failure and for an unexpected pass."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path

import verdict

LIST = "server:\n  # A comment.\n  - sampling  # we ask no model\n  - stateless:log  # we log nothing\n"


def checks(**statuses: str) -> list[dict[str, str]]:
    """Checks by id."""
    return [{"id": name, "status": status} for name, status in statuses.items()]


class Judging(unittest.TestCase):
    """What `judge` says."""

    def problems(self, **found: list[dict[str, str]]) -> list[str]:
        return verdict.judge(found, verdict.entries(LIST)).problems

    def test_what_fails_as_listed_is_good(self) -> None:
        found = {"sampling": checks(a="FAILURE", b="SUCCESS"), "stateless": checks(log="WARNING", ack="SUCCESS")}
        said = verdict.judge(found, verdict.entries(LIST))
        self.assertEqual((said.passed, said.failed, said.known, said.good), (2, 0, 2, True))

    def test_an_unexpected_failure_is_a_problem(self) -> None:
        found = {"sampling": checks(a="FAILURE"), "ping": checks(ping="FAILURE")}
        self.assertEqual(self.problems(**found), ["ping:ping failed: "])

    def test_another_check_of_a_listed_scenario_is_a_problem(self) -> None:
        found = {"stateless": checks(log="FAILURE", ack="WARNING")}
        self.assertEqual(self.problems(**found), ["stateless:ack failed: "])

    def test_an_unexpected_pass_is_a_problem(self) -> None:
        found = {"sampling": checks(a="SUCCESS"), "stateless": checks(log="SUCCESS")}
        self.assertEqual([line.split(" ")[0] for line in self.problems(**found)], ["sampling", "stateless:log"])

    def test_a_check_that_was_left_out_is_no_failure(self) -> None:
        self.assertEqual(len(self.problems(stateless=checks(log="SKIPPED"))), 1)

    def test_nothing_is_not_good(self) -> None:
        self.assertFalse(verdict.judge({}, []).good)
        self.assertEqual(self.problems(ping=[]), ["ping: it ran no check"])

    def test_a_listed_scenario_that_no_suite_has_is_a_problem(self) -> None:
        listed = verdict.entries(LIST)
        self.assertEqual(verdict.unknown(listed, {"sampling", "stateless"}), [])
        self.assertEqual(len(verdict.unknown(listed, {"ping"})), 2)


class Reading(unittest.TestCase):
    """What `entries` and `results` take."""

    def test_each_line_says_why_and_something_new(self) -> None:
        for line in ["- sampling", "- sampling  #", "- sampling # one space", "- a  # x\n- a:b  # y", "- a:b  # x\n- a  # y"]:
            with self.assertRaises(ValueError, msg=line):
                verdict.entries(line)
        self.assertEqual(len(verdict.entries("- a:b  # x\n- a:c  # y")), 2)

    def test_results_are_found_by_scenario(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "server-server-initialize-2026-11-27T00-55-59-263Z"
            place.mkdir()
            (place / "checks.json").write_text(json.dumps(checks(a="SUCCESS")))
            self.assertEqual(verdict.results(Path(folder)), {"server-initialize": checks(a="SUCCESS")})


if __name__ == "__main__":
    unittest.main()
