"""The scripted tour: one short proof per promise, through both doors, in front of a running example.

Each step is a function that returns what it saw, or raises when the promise does not hold. Steps run in order; a step
that needs what an earlier one found says so. Does not start anything (`stack`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import wire
from stack import Stack, seed_knowledge
from wire import Answer, Http, LegacyMcp, McpError, ModernMcp

AGENTS = {"assistant", "researcher-slow", "records", "mailer", "booker", "courier", "librarian"}
TOOLS = {
    "list_agents",
    "run_agent",
    "get_run",
    "cancel_run",
    "search_knowledge",
    "list_approvals",
    "resolve_approval",
    "list_sessions",
}
AHEAD_S = 0.4
"""How much earlier than the end the first piece of a streamed answer has to arrive (the slow agent takes 1.1 s)."""


class Broken(Exception):
    """A promise does not hold; the text says what was seen instead."""


@dataclass
class Visit:
    """What the steps share."""

    stack: Stack
    found: dict[str, str] = field(default_factory=dict)

    def http(self, name: str | None) -> Http:
        """The HTTP door as a person."""
        return self.stack.http(name)

    def mcp(self, name: str) -> ModernMcp:
        """The MCP door as a person, stateless protocol."""
        return ModernMcp(self.stack.mcp_url, self.stack.tokens[name])

    def need(self, key: str) -> str:
        """What an earlier step found."""
        if key not in self.found:
            raise Broken(f"an earlier step did not find the {key}")
        return self.found[key]


STEPS: list[tuple[str, Callable[[Visit], str]]] = []


def step(title: str) -> Callable[[Callable[[Visit], str]], Callable[[Visit], str]]:
    """Adds a step to the tour."""

    def add(function: Callable[[Visit], str]) -> Callable[[Visit], str]:
        STEPS.append((title, function))
        return function

    return add


def play(stack: Stack) -> int:
    """Plays every step, prints each result, returns the exit status."""
    visit, failed, started = Visit(stack), 0, time.monotonic()
    for title, function in STEPS:
        try:
            stack.check_alive()
            print(f"✓ {title} — {function(visit)}", flush=True)
        except Exception as error:  # whatever a step meets is its result; the next step still runs
            failed += 1
            print(f"✗ {title} — {type(error).__name__}: {error}", flush=True)
    took = time.monotonic() - started
    print(f"tour: {len(STEPS) - failed} passed, {failed} failed, {took:.0f} s", flush=True)
    if failed:
        print(f"Tollbridge's last lines:\n{stack.gateway.tail()}", flush=True)
    return 1 if failed else 0


def expect(condition: bool, otherwise: str) -> None:
    """Raises when a promise does not hold."""
    if not condition:
        raise Broken(otherwise)


def status(answer: Answer, wanted: int) -> Answer:
    """The answer, when its status is the wanted one."""
    expect(answer.status == wanted, f"expected {wanted}, got {answer.status}: {answer.body[:300]!r}")
    return answer


def refused(answer: Answer, wanted: int, code: str) -> str:
    """Checks a refusal: status, problem body, code, request id."""
    status(answer, wanted)
    kind = answer.headers.get("content-type", "")
    expect(kind.startswith("application/problem+json"), f"the refusal is {kind}, not a problem document")
    expect(answer.code == code, f"expected the code {code}, got {answer.code}: {answer.body[:300]!r}")
    expect(isinstance(answer.json().get("detail"), str), "`detail` is not a string")
    expect("x-request-id" in answer.headers, "no X-Request-Id")
    return f"{wanted} {code}: {answer.json()['detail']}"


def until(what: str, deadline_s: float, ready: Callable[[], bool]) -> None:
    """Polls until something holds."""
    deadline = time.monotonic() + deadline_s
    while not ready():
        expect(time.monotonic() < deadline, f"{what} did not happen within {deadline_s:.0f} s")
        time.sleep(0.1)


# --- Health and identity --------------------------------------------------------------------------------------------


@step("health is answered by the gateway itself")
def health(visit: Visit) -> str:
    answer = status(visit.http(None).get("/health"), 200)
    expect("uvicorn" not in answer.headers.get("server", ""), "the answer came from AgentOS")
    return answer.body.decode().strip()[:80]


@step("the admin listener says alive and ready")
def ready(visit: Visit) -> str:
    admin = Http(visit.stack.admin)
    status(admin.get("/healthz"), 200)
    status(admin.get("/readyz"), 200)
    return "/healthz 200, /readyz 200"


@step("a call without a token is refused")
def no_token(visit: Visit) -> str:
    answer = visit.http(None).get("/agents")
    text = refused(answer, 401, "unauthenticated")
    expect("www-authenticate" in answer.headers, "no WWW-Authenticate")
    return text


@step("a call with a forged token is refused")
def forged_token(visit: Visit) -> str:
    head, claims, mark = visit.stack.tokens["alice"].split(".")
    forged = Http(visit.stack.origin, f"{head}.{claims}.{mark[::-1]}")
    return refused(forged.get("/agents"), 401, "unauthenticated")


# --- Runs through the HTTP door -------------------------------------------------------------------------------------


@step("agents are listed")
def list_agents(visit: Visit) -> str:
    listed = {agent["id"] for agent in status(visit.http("alice").get("/agents"), 200).json()}
    expect(listed >= AGENTS, f"missing: {sorted(AGENTS - listed)}")
    return ", ".join(sorted(listed))


@step("an agent runs and answers JSON")
def run_json(visit: Visit) -> str:
    fields = {"message": "hello from the tour", "stream": "false", "session_id": "tour-session"}
    answer = status(visit.http("alice").form("/agents/assistant/runs", **fields), 200)
    body = answer.json()
    expect(body["content"] == "echo: hello from the tour", f"content is {body['content']!r}")
    expect("x-request-id" in answer.headers, "no X-Request-Id")
    expect("~" not in str(body.get("user_id", "")), f"the upstream user id shows: {body.get('user_id')}")
    visit.found["session"] = body["session_id"]
    return f"{body['content']!r}, run {body['run_id']}"


@step("a multipart form runs too")
def run_multipart(visit: Visit) -> str:
    answer = visit.http("alice").multipart("/agents/assistant/runs", message="in parts", stream="false")
    return repr(status(answer, 200).json()["content"])


@step("a streamed run arrives piece by piece")
def run_stream(visit: Visit) -> str:
    events = list(visit.http("alice").events("/agents/researcher-slow/runs", message="go"))
    names = [event.name for event in events]
    expect(names[0] == "RunStarted" and names[-1] == "RunCompleted", f"events: {names}")
    first = next(event.at_s for event in events if event.name == "RunContent")
    expect(first < events[-1].at_s - AHEAD_S, f"first piece after {first:.2f} s, end after {events[-1].at_s:.2f} s")
    return f"{len(events)} events, first piece after {first:.2f} s, end after {events[-1].at_s:.2f} s"


@step("a team runs")
def run_team(visit: Visit) -> str:
    answer = status(visit.http("alice").form("/teams/newsroom/runs", message="lead story", stream="false"), 200)
    content = answer.json()["content"]
    expect("lead story" in content, f"content is {content!r}")
    return repr(content)


@step("a workflow runs")
def run_workflow(visit: Visit) -> str:
    answer = status(visit.http("alice").form("/workflows/daily-report/runs", message="the day", stream="false"), 200)
    content = answer.json()["content"]
    expect(content == "echo: echo: the day", f"content is {content!r}")
    return repr(content)


# --- Refusals -------------------------------------------------------------------------------------------------------


@step("a viewer may not run an agent")
def viewer_runs(visit: Visit) -> str:
    answer = visit.http("vera").form("/agents/assistant/runs", message="let me in", stream="false")
    text = refused(answer, 403, "forbidden")
    expect(b"cedar" not in answer.body and b"policy" not in answer.body.lower(), "the refusal names a policy")
    return text


@step("an operation that the catalogue does not know is refused")
def unknown_operation(visit: Visit) -> str:
    return refused(visit.http("alice").get("/no/such/operation"), 404, "operation_unknown")


@step("a known path with another method is refused")
def wrong_method(visit: Visit) -> str:
    answer = visit.http("alice").send("PUT", "/agents", None, {})
    text = refused(answer, 405, "method_not_allowed")
    expect("GET" in answer.headers.get("allow", ""), f"Allow is {answer.headers.get('allow')!r}")
    return text


@step("a path that can be read two ways is refused")
def crooked_path(visit: Visit) -> str:
    return refused(visit.http("alice").get("/agents/%2e%2e/config"), 400, "path_not_canonical")


@step("a form field that AgentOS would pass on blindly is refused")
def smuggled_field(visit: Visit) -> str:
    fields = {"message": "hi", "stream": "false", "session_state": '{"role": "admin"}'}
    return refused(visit.http("alice").form("/agents/assistant/runs", **fields), 400, "field_not_allowed")


# --- Tenants and limits ---------------------------------------------------------------------------------------------


@step("a session shows to its owner and not to another tenant")
def isolation(visit: Visit) -> str:
    session = visit.need("session")
    path = f"/sessions/{session}?type=agent"
    status(visit.http("alice").get(path), 200)
    text = refused(visit.http("gina").get(path), 404, "not_found")
    listed = status(visit.http("gina").get("/sessions?type=agent"), 200).json()["data"]
    expect(all(row["session_id"] != session for row in listed), "globex lists acme's session")
    return f"alice of acme 200, gina of globex {text}"


@step("a list is kept for a moment")
def cached_list(visit: Visit) -> str:
    status(visit.http("alice").get("/agents"), 200)
    answer = status(visit.http("gina").get("/agents"), 200)
    expect("hit" in answer.headers.get("cache-status", ""), f"Cache-Status: {answer.headers.get('cache-status')!r}")
    expect(answer.headers.get("age", "").isdigit(), f"Age: {answer.headers.get('age')!r}")
    return f"Cache-Status: {answer.headers['cache-status']}; Age: {answer.headers['age']}"


@step("a tenant over its rate is asked to come back later")
def rate_limit(visit: Visit) -> str:
    for sent in range(1, 11):
        answer = visit.http("ian").get("/agents")
        if answer.status == 429:
            break
        status(answer, 200)
    text = refused(answer, 429, "rate_limited")
    after = answer.headers.get("retry-after", "")
    expect(after.isdigit() and int(after) >= 1, f"Retry-After: {after!r}")
    expect("ratelimit" in answer.headers and "ratelimit-policy" in answer.headers, "no RateLimit headers")
    expect(sent == 4, f"3 calls a minute are allowed, call {sent} was refused")
    return f"call {sent}: {text}; Retry-After: {after}"


@step("knowledge is found by its tenant only")
def knowledge(visit: Visit) -> str:
    seed_knowledge(visit.stack)
    query = {"query": "when does the tollbridge open"}
    own = status(visit.http("alice").post_json("/knowledge/search", query), 200).json()["data"]
    expect(any("opens at dawn" in hit["content"] for hit in own), f"acme's own search found {own}")
    foreign = status(visit.http("gina").post_json("/knowledge/search", query), 200).json()["data"]
    expect(all("opens at dawn" not in hit["content"] for hit in foreign), "globex finds acme's document")
    again = status(visit.http("alice").post_json("/knowledge/search", query), 200)
    expect("hit" in again.headers.get("cache-status", ""), f"Cache-Status: {again.headers.get('cache-status')!r}")
    return f"acme {len(own)} hit(s), globex none of them, repeated from the cache"


# --- WebSocket ------------------------------------------------------------------------------------------------------


@step("a workflow runs over the WebSocket")
def socket_runs(visit: Visit) -> str:
    socket = wire.WebSocket(visit.stack.origin, "/workflows/ws", visit.stack.tokens["alice"])
    try:
        socket.send({"action": "start-workflow", "workflow_id": "daily-report", "message": "by socket"})
        names = []
        for message in socket.messages():
            event = wire.socket_event(message)
            names.append(event.get("event", "?"))
            expect("error" not in names[-1], f"{event}")
            if names[-1] == "WorkflowCompleted":
                expect("by socket" in str(event.get("content")), f"{event}")
                return f"{len(names)} messages, the last one {names[-1]}"
        raise Broken(f"the server closed after {names}")
    finally:
        socket.close()


@step("the WebSocket refuses strangers and viewers")
def socket_refuses(visit: Visit) -> str:
    return f"stranger: {socket_outcome(visit, None)}; viewer: {socket_outcome(visit, 'vera')}"


def socket_outcome(visit: Visit, name: str | None) -> str:
    """How the socket refuses to start a workflow."""
    try:
        socket = wire.WebSocket(visit.stack.origin, "/workflows/ws", visit.stack.tokens[name] if name else None)
    except wire.HandshakeRefused as error:
        expect(error.status in (401, 403), str(error))
        return f"{error.status} at the handshake"
    try:
        socket.send({"action": "start-workflow", "workflow_id": "daily-report", "message": "let me in"})
        for message in socket.messages():
            event = wire.socket_event(message)
            expect(not str(event.get("event")).startswith("Workflow"), f"the workflow started: {event}")
            if "error" in str(event.get("event")) or event.get("event") == "auth_required":
                return str(event.get("code") or event["event"])
        return "closed"
    except ConnectionError:
        return "closed"
    finally:
        socket.close()


# --- The MCP door ---------------------------------------------------------------------------------------------------


@step("MCP 2026-07-28: tools are listed")
def mcp_tools(visit: Visit) -> str:
    names = set(visit.mcp("alice").tools())
    # Resolving approvals is not an operator's: the list shows what this caller may use.
    expect(names >= TOOLS - {"resolve_approval"}, f"missing: {sorted(TOOLS - names)}")
    return ", ".join(sorted(names))


@step("MCP 2026-07-28: a run reports progress before it ends")
def mcp_progress(visit: Visit) -> str:
    result = visit.mcp("alice").call("run_agent", agent="researcher-slow", message="go")
    expect(not result.is_error, result.text)
    expect("tick 12" in result.text, f"text is {result.text[:200]!r}")
    expect(bool(result.progress), "no progress notification")
    first = result.progress[0].at_s
    expect(first < result.took_s - AHEAD_S, f"first progress after {first:.2f} s, result after {result.took_s:.2f} s")
    return f"{len(result.progress)} notifications, the first after {first:.2f} s, the result after {result.took_s:.2f} s"


@step("MCP 2025-11-25: a session initializes, lists and runs")
def mcp_legacy(visit: Visit) -> str:
    client = LegacyMcp(visit.stack.mcp_url, visit.stack.tokens["alice"])
    names = set(client.tools())
    expect("run_agent" in names, f"tools: {sorted(names)}")
    result = client.call("run_agent", agent="assistant", message="hello from a session")
    expect("echo: hello from a session" in result.text and not result.is_error, result.text)
    client.close()
    return f"{client.server['protocolVersion']}, {len(names)} tools, {result.text.splitlines()[0]!r}"


@step("MCP: teams and workflows run by the same tool")
def mcp_kinds(visit: Visit) -> str:
    team = visit.mcp("alice").call("run_agent", agent="newsroom", kind="team", message="big news")
    workflow = visit.mcp("alice").call("run_agent", agent="daily-report", kind="workflow", message="a day")
    expect("big news" in team.text and not team.is_error, team.text)
    expect("echo: echo: a day" in workflow.text and not workflow.is_error, workflow.text)
    return f"{team.text.splitlines()[0]!r}, {workflow.text.splitlines()[0]!r}"


@step("MCP: a background run is followed and cancelled by its handle")
def mcp_background(visit: Visit) -> str:
    client = visit.mcp("alice")
    quick = client.call("run_agent", agent="assistant", message="in the background", background=True)
    followed = client.call("get_run", run=handle_in(quick), wait_s=10)
    expect("echo: in the background" in followed.text, followed.text)
    slow = client.call("run_agent", agent="researcher-slow", message="go", background=True)
    cancelled = client.call("cancel_run", run=handle_in(slow))
    stranger = visit.mcp("gina").call("get_run", run=handle_in(quick))
    expect(stranger.is_error, f"gina reads alice's run: {stranger.text}")
    return f"followed to its end; cancel: {cancelled.text.splitlines()[0][:80]!r}; another tenant's handle is refused"


def handle_in(result: wire.ToolResult) -> str:
    """The run handle that a result names."""
    expect(not result.is_error, result.text)
    if isinstance(result.structured, dict) and "run" in result.structured:
        return str(result.structured["run"])
    found = re.search(r'\brun["`]?\s*[:=]\s*["`]?([A-Za-z0-9._~-]{20,})', result.text)
    expect(found is not None, f"no run handle in {result.text!r}")
    return found.group(1) if found else ""


@step("MCP: knowledge is searched")
def mcp_knowledge(visit: Visit) -> str:
    result = visit.mcp("alice").call("search_knowledge", query="when does the tollbridge open")
    expect("opens at dawn" in result.text and not result.is_error, result.text)
    return "found the acme handbook"


@step("MCP: a viewer neither sees nor uses the tool that runs agents")
def mcp_refused(visit: Visit) -> str:
    client = visit.mcp("vera")
    expect("run_agent" not in client.tools(), "run_agent is listed")
    try:
        result = client.call("run_agent", agent="assistant", message="let me in")
    except McpError as error:
        expect("let me in" not in str(error), str(error))
        return f"not listed; called anyway: {error}"
    expect(result.is_error and "echo:" not in result.text, f"it ran: {result.text}")
    return f"not listed; called anyway: {result.text.splitlines()[0][:100]}"


# --- Approvals ------------------------------------------------------------------------------------------------------


@step("a run that needs approval pauses")
def approval_pauses(visit: Visit) -> str:
    result = visit.mcp("alice").call("run_agent", agent="records", message="delete record 42")
    expect("deleted 42" not in result.text, f"the record is gone without approval: {result.text}")
    expect("paused" in result.text.lower(), result.text)
    rows = status(visit.http("adam").get("/approvals?status=pending"), 200).json()["data"]
    expect(len(rows) == 1 and rows[0]["tool_name"] == "delete_record", f"pending approvals: {rows}")
    visit.found.update(approval=rows[0]["id"], run=rows[0]["run_id"], paused_session=rows[0]["session_id"])
    expect(rows[0]["id"] in result.text, f"the result does not name the approval: {result.text}")
    return f"approval {rows[0]['id']} for {rows[0]['tool_name']}{rows[0]['tool_args']}"


@step("it does not continue before the approval, and its requester may not approve")
def approval_waits(visit: Visit) -> str:
    early = continue_run(visit)
    expect(early.status in (403, 409), f"continue answered {early.status}: {early.body[:200]!r}")
    body = {"status": "approved", "resolved_by": "adam"}
    answer = visit.http("alice").post_json(f"/approvals/{visit.need('approval')}/resolve", body)
    return f"continue {early.status} {early.code}; alice: {refused(answer, 403, 'forbidden')}"


@step("the approver resolves it through MCP, another tenant does not see it")
def approval_resolves(visit: Visit) -> str:
    approval = visit.need("approval")
    refused(visit.http("gina").get(f"/approvals/{approval}"), 404, "not_found")
    result = visit.mcp("adam").call("resolve_approval", approval_id=approval, decision="approve", note="seen")
    expect(not result.is_error, result.text)
    row = status(visit.http("adam").get(f"/approvals/{approval}"), 200).json()
    expect(row["status"] == "approved", f"status is {row['status']}")
    return f"resolved by {row['resolved_by']}"


@step("then it continues")
def approval_continues(visit: Visit) -> str:
    body = status(continue_run(visit), 200).json()
    expect("deleted 42" in str(body["content"]), f"content is {body['content']!r}")
    return repr(body["content"])


def continue_run(visit: Visit) -> Answer:
    """Asks for the paused run to go on, as its owner."""
    path = f"/agents/records/runs/{visit.need('run')}/continue"
    return visit.http("alice").form(path, session_id=visit.need("paused_session"), stream="false")


# --- What was counted -----------------------------------------------------------------------------------------------


@step("the metrics counted all of this")
def metrics(visit: Visit) -> str:
    text = status(Http(visit.stack.admin).get("/metrics"), 200).body.decode()
    wanted = [
        r'tollbridge_requests_total\{[^}]*door="http"',
        r'tollbridge_requests_total\{[^}]*door="mcp"',
        r'tollbridge_requests_total\{[^}]*door="websocket"',
        r'tollbridge_request_duration_seconds_count\{[^}]*door="http"',
        r'tollbridge_time_to_first_byte_seconds_count\{',
        r'tollbridge_refusals_total\{[^}]*code="forbidden"',
        r'tollbridge_refusals_total\{[^}]*code="rate_limited"',
        r'tollbridge_refusals_total\{[^}]*code="operation_unknown"',
        r'tollbridge_cache_results_total\{[^}]*result="hit"',
        r'tollbridge_tokens_total\{[^}]*tenant="acme"',
        r'tollbridge_mcp_requests_total\{[^}]*method="tools/call"',
        r'tollbridge_endpoint_up\{[^}]*\} 1',
    ]
    missing = [pattern for pattern in wanted if not re.search("^" + pattern, text, re.MULTILINE)]
    expect(not missing, f"not counted: {missing}")
    secret = [name for name, token in visit.stack.tokens.items() if token in text]
    expect(not secret, "a token shows in the metrics")
    return f"{len(wanted)} series checked, {len(text.splitlines())} lines"


@step("when a replica stops, calls go on")
def replica_stops(visit: Visit) -> str:
    visit.stack.lose_replica()
    admin = Http(visit.stack.admin)
    down = re.compile(r"^tollbridge_endpoint_up\{[^}]*\} 0$", re.MULTILINE)
    until("the ejection", 15, lambda: bool(down.search(admin.get("/metrics").body.decode())))
    for number in range(6):
        answer = visit.http("alice").form("/agents/assistant/runs", message=f"call {number}", stream="false")
        status(answer, 200)
    return "one endpoint down, 6 of 6 runs answered"


@step("Tollbridge drains and ends in order")
def gateway_ends(visit: Visit) -> str:
    started = time.monotonic()
    code = visit.stack.stop_gateway()
    expect(code == 0, f"it ended with status {code}")
    return f"status 0 after {time.monotonic() - started:.1f} s"
