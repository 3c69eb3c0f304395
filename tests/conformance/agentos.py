"""A fake AgentOS whose agents do what the fixtures of the public MCP conformance suites are said to do.

Each agent has the id of a fixture tool and a script. Runs stream, pause, wait and fail as those of agno 3.1.10 do. Nothing is
stored beyond this process and nobody is authenticated. It listens on 127.0.0.1 and prints `{"listening": PORT}`.
Does not know MCP: what turns a run into a tool result is the gateway in front of it.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

# A red pixel, and a sound of no length.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
RUNS_MAX = 1_000

# --- what agents do -------------------------------------------------------------------------------------------------


@dataclass
class Say:
    """A piece of the answer."""

    text: str


@dataclass
class Use:
    """A tool call that takes this many seconds."""

    tool: str
    seconds: float


@dataclass
class Rest:
    """Seconds in which nothing is said."""

    seconds: float


@dataclass
class Give:
    """Media beside the answer, as AgentOS names them: `images`, `audio`, `files`."""

    media: dict[str, list[dict[str, str]]]


@dataclass
class Choose:
    """A question with options: labels, and what each means."""

    options: dict[str, str]
    many: bool = False


Form = dict[str, "str | Choose"]


@dataclass
class Ask:
    """A pause: each item is one tool call with what a person fills in, field to type, or question to options."""

    calls: list[Form]


@dataclass
class Fail:
    """The end, with an error."""

    why: str


Script = Generator[Any, list[dict[str, Any]], None]
IMAGE = {"images": [{"id": "pixel", "content": PNG, "mime_type": "image/png"}]}
AUDIO = {"audio": [{"id": "silence", "content": WAV, "mime_type": "audio/wav"}]}
TEXT = {"files": [{"id": "note", "content": "A note.", "mime_type": "text/plain", "filename": "note.txt"}]}


def says(text: str, media: dict[str, list[dict[str, str]]] | None = None) -> Callable[[dict[str, Any]], Script]:
    """An agent with one answer."""

    def script(_asked: dict[str, Any]) -> Script:
        if media:
            yield Give(media)
        yield Say(text)

    return script


def asks(*rounds: list[Form], after_s: float = 0, works_s: float = 0) -> Callable[[dict[str, Any]], Script]:
    """An agent that asks a person, once or several times, and repeats what it was told."""

    def script(_asked: dict[str, Any]) -> Script:
        yield Rest(after_s)
        told = []
        for calls in rounds:
            told += yield Ask(calls)
        yield Rest(works_s)
        yield Say(f"You said: {json.dumps(told)}")

    return script


def greets(asked: dict[str, Any]) -> Script:
    """Says hello."""
    yield Say(f"Hello, {asked.get('name', 'nobody')}!")


def fails(_asked: dict[str, Any]) -> Script:
    """Fails at once."""
    yield Fail("This tool intentionally returns an error for testing")


def fails_later(_asked: dict[str, Any]) -> Script:
    """Fails after a while."""
    yield Rest(0.5)
    yield Fail("the job failed")


def works(_asked: dict[str, Any]) -> Script:
    """Uses three tools, one after the other."""
    for number in range(1, 4):
        yield Use(f"step_{number}", 0.4)
    yield Say("Done.")


def computes(asked: dict[str, Any]) -> Script:
    """Takes as long as it is told to."""
    yield Rest(float(asked.get("seconds", 0)))
    yield Say(f"Computed: {asked.get('label', '')}")


NAME: Form = {"name": "str"}
OK: Form = {"ok": "bool"}
PLAIN = {"option1": "", "option2": "", "option3": ""}
TITLED = {"value1": "the first", "value2": "the second", "value3": "the third"}
CHOICES: Form = {
    "untitledSingle": Choose(PLAIN),
    "titledSingle": Choose(TITLED),
    "untitledMulti": Choose(PLAIN, many=True),
    "titledMulti": Choose(TITLED, many=True),
}
AGENTS: dict[str, Callable[[dict[str, Any]], Script]] = {
    "test_simple_text": says("This is a simple text response for testing."),
    "test_logging_tool": says("There is nothing to log."),
    "test_reconnection": says("Nobody was disconnected."),
    "test_image_content": says("An image.", IMAGE),
    "test_audio_content": says("A sound.", AUDIO),
    "test_embedded_resource": says("A file.", TEXT),
    "test_multiple_content_types": says("Several things.", IMAGE | TEXT),
    "test_error_handling": fails,
    "test_tool_with_progress": works,
    "test_elicitation": asks([{"username": "str", "email": "str"}]),
    "test_elicitation_sep1330_enums": asks([CHOICES]),
    "test_streaming_elicitation": asks([NAME]),
    "test_input_required_result_elicitation": asks([NAME]),
    "test_input_required_result_request_state": asks([OK]),
    "test_input_required_result_tampered_state": asks([OK]),
    "test_input_required_result_multi_round": asks([NAME], [{"color": "str"}]),
    # The tasks extension.
    "greet": greets,
    "slow_compute": computes,
    "failing_job": fails_later,
    "confirm_delete": asks([{"confirm": "bool"}], after_s=0.5),
    "multi_input": asks([{"name": "str", "confirm": "bool"}] * 2, after_s=0.5),
    "test_tool_with_task": asks([NAME], works_s=2),
    # Prompts: the gateway has one for each agent.
    "test_simple_prompt": says("A prompt."),
    "test_prompt_with_arguments": says("A prompt."),
}
# What can be read though it is in no list, as a template is filled in.
UNLISTED = {"123"}

# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One run, and where its script stands."""

    agent: str
    run_id: str
    session_id: str
    user_id: str | None
    script: Script
    status: str = "RUNNING"
    content: str = ""
    media: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def row(self) -> dict[str, Any]:
        """The run as AgentOS stores it."""
        ids = {"run_id": self.run_id, "session_id": self.session_id, "user_id": self.user_id, "agent_id": self.agent}
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        return {**ids, "status": self.status, "content": self.content, "tools": self.tools, "metrics": usage, **self.media}

    def go(self, answers: list[dict[str, Any]] | None, emit: Callable[[str, dict[str, Any]], None]) -> None:
        """Plays the script until it pauses or ends."""
        self.status, self.tools = "RUNNING", []
        emit("RunStarted" if answers is None else "RunContinued", {})
        try:
            step = next(self.script) if answers is None else self.script.send(answers)
            while self.play(step, emit):
                step = next(self.script)
        except StopIteration:
            self.status = "COMPLETED"
            usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
            emit("ModelRequestCompleted", usage)
            emit("RunCompleted", {"content": self.content, "metrics": usage, **self.media})

    def play(self, step: Any, emit: Callable[[str, dict[str, Any]], None]) -> bool:
        """Plays one step; whether there is another one."""
        match step:
            case Say(text):
                self.content += text
                emit("RunContent", {"content": text})
            case Give(media):
                self.media = media
            case Use(tool, seconds):
                call = {"tool": {"tool_call_id": tool, "tool_name": tool, "tool_args": {}}}
                emit("ToolCallStarted", call)
                if self.cancelled.wait(seconds):
                    return self.end_cancelled(emit)
                emit("ToolCallCompleted", call)
            case Rest(seconds):
                if self.cancelled.wait(seconds):
                    return self.end_cancelled(emit)
            case Ask(calls):
                self.status = "PAUSED"
                self.tools = [question(number, fields) for number, fields in enumerate(calls, start=1)]
                emit("RunPaused", {"tools": self.tools})
                return False
            case Fail(why):
                self.status, self.content = "ERROR", why
                emit("RunError", {"content": why})
                return False
        return True

    def end_cancelled(self, emit: Callable[[str, dict[str, Any]], None]) -> bool:
        """Ends a run that somebody cancelled."""
        self.status = "CANCELLED"
        emit("RunCancelled", {"reason": "cancelled"})
        return False


def question(number: int, form: Form) -> dict[str, Any]:
    """A tool call that waits for a person."""
    call = {"tool_call_id": f"call-{number}-{uuid.uuid4().hex[:8]}", "tool_name": "ask_the_user", "tool_args": {}}
    call |= {"requires_user_input": True, "answered": None, "user_input_schema": [], "user_feedback_schema": []}
    for name, kind in form.items():
        if isinstance(kind, Choose):
            options = [{"label": label, "description": means or None} for label, means in kind.options.items()]
            one = {"question": name, "header": None, "multi_select": kind.many, "selected_options": None, "options": options}
            call["user_feedback_schema"].append(one)
        else:
            one = {"name": name, "field_type": kind, "description": "", "value": None}
            call["user_input_schema"].append(one)
    return call


def answers_in(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a person filled in and chose, call by call."""
    fields = [{f["name"]: f["value"] for f in tool.get("user_input_schema") or []} for tool in tools]
    chosen = [{q["question"]: q["selected_options"] for q in tool.get("user_feedback_schema") or []} for tool in tools]
    return [one | other for one, other in zip(fields, chosen)]


# --- the wire -------------------------------------------------------------------------------------------------------


class World:
    """Everything that requests share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: list[str] = []
        self.runs: dict[str, Run] = {}

    def agents(self) -> list[dict[str, str]]:
        """The agents as they are listed."""
        with self.lock:
            return [described(name) for name in (*AGENTS, *self.made)]

    def keep(self, run: Run) -> None:
        """Stores a run; the oldest one gives way."""
        with self.lock:
            self.runs[run.run_id] = run
            while len(self.runs) > RUNS_MAX:
                del self.runs[next(iter(self.runs))]


def described(name: str) -> dict[str, str]:
    """An agent as lists show it."""
    return {"id": name, "name": name, "description": f"The agent behind the fixture {name}."}


def page(rows: list[Any]) -> dict[str, Any]:
    """A page with everything on it."""
    return {"data": rows, "meta": {"page": 1, "limit": 100, "total_pages": 1, "total_count": len(rows)}}


class Handler(BaseHTTPRequestHandler):
    """One connection of the gateway."""

    protocol_version = "HTTP/1.1"
    world = World()

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Everything that is read."""
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["health"]:
                self.json(200, {"status": "ok"})
            case ["info"]:
                self.json(200, {"os_id": "fixtures", "agno_version": "3.1.10"})
            case ["openapi.json"]:
                self.json(200, {"openapi": "3.1.0", "info": {"title": "Fixtures", "version": "1"}, "paths": {"/info": {}}})
            case ["config"]:
                self.json(200, {"os_id": "fixtures", "agents": self.world.agents(), "teams": [], "workflows": []})
            case ["agents"]:
                self.json(200, self.world.agents())
            case ["teams" | "workflows"]:
                self.json(200, [])
            case ["agents", name] if name in UNLISTED or any(one["id"] == name for one in self.world.agents()):
                self.json(200, described(name))
            case ["agents", _, "runs", run_id] if run := self.world.runs.get(run_id):
                self.json(200, run.row())
            case ["sessions" | "approvals"]:
                self.json(200, page([]))
            case _:
                self.json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        """Runs and what happens to them, and new components."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        form = {name: values[-1] for name, values in parse_qs(body).items()}
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["agents", name, "runs"] if name in AGENTS:
                self.start(name, form)
            case ["agents", _, "runs", run_id, "cancel"]:
                if run := self.world.runs.get(run_id):
                    run.cancelled.set()
                self.json(200, {})
            case ["agents", _, "runs", run_id, "continue"] if run := self.world.runs.get(run_id):
                self.stream(run, answers_in(json.loads(form.get("tools") or "[]")))
            case ["components"]:
                name = f"made-{uuid.uuid4().hex[:8]}"
                with self.world.lock:
                    self.world.made.append(name)
                self.json(201, {"component_id": name, "component_type": "agent", "name": name})
            case _:
                self.json(404, {"detail": "Not Found"})

    def start(self, name: str, form: dict[str, str]) -> None:
        """Starts a run; its message holds what the fixture was called with."""
        try:
            asked = json.loads(form.get("message", ""))
        except ValueError:
            asked = {}
        run_id, session_id = form.get("run_id") or str(uuid.uuid4()), form.get("session_id") or str(uuid.uuid4())
        run = Run(name, run_id, session_id, form.get("user_id"), AGENTS[name](asked))
        self.world.keep(run)
        self.stream(run, None)

    def stream(self, run: Run, answers: list[dict[str, Any]] | None) -> None:
        """Plays a run as server-sent events. Whoever leaves ends it."""
        if not run.lock.acquire(blocking=False):
            return self.json(409, {"detail": "run is already continued"})
        try:
            if answers is not None and run.status != "PAUSED":
                return self.json(409, {"detail": "run is already continued"})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

            def emit(name: str, more: dict[str, Any]) -> None:
                ids = {"event": name, "run_id": run.run_id, "session_id": run.session_id, "agent_id": run.agent}
                self.chunk(f"event: {name}\ndata: {json.dumps({'created_at': int(time.time()), **ids, **more})}\n\n")

            run.go(answers, emit)
            self.chunk("")
        except OSError:
            run.status = "CANCELLED"
            self.close_connection = True
        finally:
            run.lock.release()

    def chunk(self, text: str) -> None:
        """Sends a chunk; an empty one is the last."""
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def json(self, status: int, body: Any) -> None:
        """Sends a document."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serves until it is ended."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(json.dumps({"listening": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
