"""Owns a gateway before the fake AgentOS (`agentos`), for the scenarios of the conformance suites that need fixtures.

Does not build anything: TOLLBRIDGE_BIN names the binary, the same that everybody gets.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))

from stack import (  # noqa: E402
    ROOT,
    START_DEADLINE_S,
    ConfigText,
    Person,
    Stack,
    StackError,
    build_binary,
    free_ports,
    listening,
)
from wire import McpError, ModernMcp  # noqa: E402

NOBODY_WAITS = (0, 0.0)


class Stand(Stack):
    """The fake, the gateway, and a token of the administrator. Use it as a context manager."""

    def __init__(self) -> None:
        super().__init__("fake", True, {"ada": Person("acme", "admin")}, NOBODY_WAITS)

    def start(self) -> None:
        """Starts both and mints the token."""
        self.binary = build_binary()
        template = HERE / "gateway.toml"
        self.environment = {**os.environ, **{name: secrets.token_hex(32) for name in ConfigText(template).variables()}}
        fake = self.spawn("the fake AgentOS", "agentos.log", [sys.executable, str(HERE / "agentos.py")], self.environment)
        fake.wait_until(lambda: listening(fake) is not None, START_DEADLINE_S, "the start")
        self.listen, self.admin_listen = (f"127.0.0.1:{port}" for port in free_ports(2))
        filled = {
            "listen": self.listen,
            "admin": self.admin_listen,
            "agentos": f"127.0.0.1:{listening(fake)}",
            "policies": str(ROOT / "policies"),
        }
        text = template.read_text()
        for name, value in filled.items():
            text = text.replace(f"{{{name}}}", value)
        self.config = self.folder / "config.toml"
        self.config.write_text(text)
        self.start_gateway()
        self.tokens = {name: self.mint(name, person) for name, person in self.people.items()}

    def blob(self) -> str:
        """The address of something binary: the image that a run has made."""
        client = ModernMcp(self.mcp_url, self.tokens["ada"])
        try:
            result = client.call("run_agent", agent="test_image_content", kind="agent", message="{}")
        except McpError as error:
            raise StackError(f"the agent that makes an image cannot be run: {error}") from None
        runs = [line.removeprefix("run: ") for line in result.text.splitlines() if line.startswith("run: ")]
        if len(runs) != 1:
            raise StackError(f"the agent that makes an image said: {result.text[:300]}")
        return f"agno://runs/{runs[0]}/media/0"
