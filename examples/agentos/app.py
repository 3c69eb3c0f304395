"""An AgentOS that runs offline and answers the same every time; unchanged on agno 2.5.6 and 3.1.10.

`make demo` and the integration tests put Tollbridge in front of two of these. It listens on 127.0.0.1 only and prints
one JSON line, `{"listening": 7777}`, on stdout when it answers requests.

Who is in it:

    agents     assistant         echoes the message
               researcher-slow   streams SLOW_CHUNKS chunks, one every SLOW_DELAY seconds
               records           deletes a record: the tool needs an approval by somebody else
               mailer            sends a mail: the tool needs the caller's own confirmation
               booker            books a room: the caller says which one
               courier           carries a parcel: a tool that runs outside of AgentOS, the caller brings its result
               librarian         looks into the knowledge base before it answers
    teams      newsroom          hands the message to its reporter, then sums up
               archive           its member deletes records, with an approval
    workflows  daily-report      draft, then polish
               slow-report       one step by the slow researcher
               clean-up          one step that deletes a record, with an approval
    knowledge  docs

Environment:

    PORT             port to listen on; 0 takes a free one (7777)
    DB, LANCE        SQLite file and LanceDB folder; replicas share both (agentos-<agno version>.db, <DB>.lance)
    OS_ID            id of this AgentOS, the audience of its tokens (my-os)
    AUTH             1: JWT authorization with scopes (0)
    JWT_KEY          secret or PEM public key; `@path` reads a file; needed with AUTH=1
    JWT_ALG          HS256, RS256 … (HS256)
    VERIFY_AUD       1: tokens must name OS_ID as audience (1)
    USER_ISOLATION   1: agno 3.x keeps users apart (0)
    INTERNAL_TOKEN   token of the scheduler; replicas share it (random)
    MCP              1: agno's own MCP server at /mcp (0)
    SCHEDULER        1: run schedules (0)
    TRACING          1: record traces (0)
    EXTRAS           1: what only tests need (0): A2A, AG-UI, components whose knowledge no filter reaches (agent clerk,
                     team help-desk, workflow look-up), and an agent that asks with options (guide)
    ANNEX            1: the agent annex keeps its sessions in a second database (0)
    SLOW_CHUNKS      length of a slow answer (20)
    SLOW_DELAY       seconds between its chunks (0.25)
    LEDGER           file that every tool writes a line to when it does its work (none)
    LOG              uvicorn's log level (warning)
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
from importlib.metadata import version
from typing import Any, TextIO

os.environ.setdefault("AGNO_TELEMETRY", "false")

import uvicorn
from agno.agent import Agent
from agno.approval import approval
from agno.db.sqlite import SqliteDb
from agno.knowledge.knowledge import Knowledge
from agno.os import AgentOS
from agno.os.config import AuthorizationConfig
from agno.team import Team
from agno.tools import tool
from agno.tools.user_feedback import UserFeedbackTools
from agno.workflow import Step, Workflow
from fastapi import FastAPI

from offline import OfflineModel, SharedLanceDb, ToolUse

AGNO_VERSION = version("agno")
IS_V3 = int(AGNO_VERSION.split(".")[0]) >= 3


def text(name: str, default: str) -> str:
    """A setting; an empty variable counts as absent."""
    return os.environ.get(name) or default


def switch(name: str, default: str) -> bool:
    """An on/off setting."""
    return text(name, default).lower() not in ("0", "false", "no", "off")


def last_word(message: str) -> str:
    """The thing that a message such as `delete record 42` is about."""
    words = message.split()
    return words[-1] if words else "nothing"


def done(deed: str) -> str:
    """Does the work of a tool: says so, and notes it in the ledger."""
    if ledger := text("LEDGER", ""):
        with open(ledger, "a", encoding="utf-8") as file:
            file.write(deed + "\n")
    return deed


@approval
@tool(requires_confirmation=True)
def delete_record(record_id: str) -> str:
    """Deletes a record for good. Somebody else has to approve it."""
    return done(f"deleted {record_id}")


@tool(requires_confirmation=True)
def send_mail(to: str) -> str:
    """Sends a mail. The caller has to confirm it."""
    return done(f"mailed {to}")


@tool(requires_user_input=True, user_input_fields=["room"])
def book_room(day: str, room: str) -> str:
    """Books a room for a day. The caller chooses the room."""
    return done(f"booked {room} for {day}")


@tool(external_execution=True)
def carry_parcel(to: str) -> str:
    """Carries a parcel. Somebody outside does it; this is never called."""
    return done(f"carried to {to}")


def agents(db: SqliteDb, docs: Knowledge) -> list[Agent]:
    """The agents, one per behaviour that a gateway has to handle."""
    slow = OfflineModel(
        id="offline-slow",
        ticks=int(text("SLOW_CHUNKS", "20")),
        delay_s=float(text("SLOW_DELAY", "0.25")),
    )
    deletes = OfflineModel(tool=ToolUse("delete_record", lambda message: {"record_id": last_word(message)}))
    mails = OfflineModel(tool=ToolUse("send_mail", lambda message: {"to": last_word(message)}))
    books = OfflineModel(tool=ToolUse("book_room", lambda message: {"day": last_word(message)}))
    carries = OfflineModel(tool=ToolUse("carry_parcel", lambda message: {"to": last_word(message)}))
    looks_up = OfflineModel(tool=ToolUse("search_knowledge_base", lambda message: {"query": message}))
    return [
        Agent(id="assistant", name="Assistant", description="Repeats what you say.", model=OfflineModel(), db=db),
        Agent(id="researcher-slow", name="Slow Researcher", description="Takes its time.", model=slow, db=db),
        Agent(id="records", name="Records", description="Deletes records.", model=deletes, tools=[delete_record], db=db),
        Agent(id="mailer", name="Mailer", description="Sends mail.", model=mails, tools=[send_mail], db=db),
        Agent(id="booker", name="Booker", description="Books rooms.", model=books, tools=[book_room], db=db),
        Agent(id="courier", name="Courier", description="Carries parcels.", model=carries, tools=[carry_parcel], db=db),
        Agent(
            id="librarian",
            name="Librarian",
            description="Answers from the knowledge base.",
            model=looks_up,
            knowledge=docs,
            search_knowledge=True,
            db=db,
        ),
    ]


def newsroom(db: SqliteDb) -> Team:
    """A team whose leader hands every message to one member."""
    reporter = Agent(id="reporter", name="reporter", role="Finds facts.", model=OfflineModel(), db=db)
    editor = Agent(id="editor", name="editor", role="Checks facts.", model=OfflineModel(), db=db)
    delegate = ToolUse("delegate_task_to_member", lambda message: {"member_id": "reporter", "task": message})
    return Team(
        id="newsroom",
        name="Newsroom",
        description="Hands the message to the reporter and sums up.",
        members=[reporter, editor],
        model=OfflineModel(id="offline-lead", tool=delegate),
        db=db,
    )


def deleter(db: SqliteDb, name: str) -> Agent:
    """An agent inside a team or a workflow whose tool needs an approval."""
    deletes = OfflineModel(tool=ToolUse("delete_record", lambda message: {"record_id": last_word(message)}))
    return Agent(id=name, name=name, role="Deletes records.", model=deletes, tools=[delete_record], db=db)


def archive(db: SqliteDb) -> Team:
    """A team whose run pauses because a member's tool needs an approval."""
    delegate = ToolUse("delegate_task_to_member", lambda message: {"member_id": "archivist", "task": message})
    return Team(
        id="archive",
        name="Archive",
        description="Hands the message to the archivist.",
        members=[deleter(db, "archivist")],
        model=OfflineModel(id="offline-archive", tool=delegate),
        db=db,
    )


def annex() -> Agent:
    """An agent whose sessions are in a database of their own."""
    other = SqliteDb(id="annex-db", db_file=text("DB", f"agentos-{AGNO_VERSION}.db") + ".annex")
    return Agent(id="annex", name="Annex", model=OfflineModel(), db=other)


def clerk(db: SqliteDb, docs: Knowledge) -> Agent:
    """An agent that searches after it was continued."""
    searches = ToolUse("search_knowledge_base", last_word_query)
    mails = OfflineModel(tool=ToolUse("send_mail", lambda message: {"to": last_word(message)}), then=searches)
    return Agent(
        id="clerk", name="Clerk", model=mails, tools=[send_mail], knowledge=docs, search_knowledge=True, db=db
    )


def guide(db: SqliteDb) -> Agent:
    """An agent that lets its user choose."""
    options = [{"label": "Rome", "description": "the old one"}, {"label": "Oslo", "description": None}]
    questions = [
        {"question": "Where to?", "header": "Place", "options": options, "multi_select": False},
        {"question": "Where else?", "header": "Places", "options": options, "multi_select": True},
    ]
    asks = OfflineModel(tool=ToolUse("ask_user", lambda _: {"questions": questions}))
    return Agent(id="guide", name="Guide", model=asks, tools=[UserFeedbackTools()], db=db)


def last_word_query(message: str) -> dict[str, str]:
    """The arguments of a search for the last word of a message."""
    return {"query": last_word(message)}


def searcher(db: SqliteDb, docs: Knowledge, name: str, **filters: Any) -> Agent:
    """An agent inside a team or a workflow that searches before it answers."""
    looks_up = OfflineModel(tool=ToolUse("search_knowledge_base", last_word_query))
    return Agent(id=name, name=name, model=looks_up, knowledge=docs, search_knowledge=True, db=db, **filters)


def help_desk(db: SqliteDb, docs: Knowledge) -> Team:
    """A team whose member has filters of its own, so that the team passes it no others."""
    delegate = ToolUse("delegate_task_to_member", lambda message: {"member_id": "adviser", "task": message})
    return Team(
        id="help-desk",
        name="Help Desk",
        members=[searcher(db, docs, "adviser", knowledge_filters={"kind": "faq"})],
        model=OfflineModel(id="offline-desk", tool=delegate),
        db=db,
    )


def look_up(db: SqliteDb, docs: Knowledge) -> Workflow:
    """A workflow whose step searches."""
    return Workflow(
        id="look-up", name="Look Up", steps=[Step(name="search", agent=searcher(db, docs, "seeker"))], db=db
    )


def workflows(db: SqliteDb, slow: Agent) -> list[Workflow]:
    """A quick workflow of two steps, a slow one of one step, and one that waits for an approval."""
    drafter = Agent(id="drafter", name="drafter", model=OfflineModel(), db=db)
    polisher = Agent(id="polisher", name="polisher", model=OfflineModel(), db=db)
    return [
        Workflow(
            id="daily-report",
            name="Daily Report",
            description="Drafts, then polishes.",
            steps=[Step(name="draft", agent=drafter), Step(name="polish", agent=polisher)],
            db=db,
        ),
        Workflow(
            id="slow-report",
            name="Slow Report",
            description="One slow step.",
            steps=[Step(name="research", agent=Agent(id="slow-step", name="slow step", model=slow.model, db=db))],
            db=db,
        ),
        Workflow(
            id="clean-up",
            name="Clean Up",
            description="Deletes a record in one step.",
            steps=[Step(name="delete", agent=deleter(db, "cleaner"))],
            db=db,
        ),
    ]


def authorization(os_id: str) -> dict[str, Any]:
    """The AgentOS arguments that turn JWT checks on."""
    if not switch("AUTH", "0"):
        return {}
    key = text("JWT_KEY", "")
    if key.startswith("@"):
        with open(key[1:], encoding="utf-8") as file:
            key = file.read()
    if not key:
        sys.exit("agentos: AUTH=1 needs JWT_KEY")
    checks: dict[str, Any] = {
        "verification_keys": [key],
        "algorithm": text("JWT_ALG", "HS256"),
        "verify_audience": switch("VERIFY_AUD", "1"),
    }
    if not IS_V3 or not switch("USER_ISOLATION", "0"):
        return {"authorization": True, "authorization_config": AuthorizationConfig(**checks)}
    config = AuthorizationConfig(**checks, user_isolation=True)
    return {"authorization": True, "authorization_config": config, "user_isolation": True}


def database() -> tuple[SqliteDb, str]:
    """The database and the folder of the vectors; write-ahead logging lets replicas write at the same time."""
    path = text("DB", f"agentos-{AGNO_VERSION}.db")
    with sqlite3.connect(path, timeout=30) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return SqliteDb(id="example-db", db_file=path), text("LANCE", f"{path}.lance")


def build(port: int) -> FastAPI:
    """The web application of the example."""
    db, lance = database()
    docs = Knowledge(
        name="docs",
        description="What the librarian knows.",
        contents_db=db,
        vector_db=SharedLanceDb(lance, "docs"),
    )
    everyone = agents(db, docs)
    teams, flows, interfaces = [newsroom(db), archive(db)], [], []
    if extras := switch("EXTRAS", "0"):
        from agno.os.interfaces.agui import AGUI

        interfaces = [AGUI(agent=everyone[0])]
        everyone += [clerk(db, docs), guide(db)]
        teams, flows = [*teams, help_desk(db, docs)], [look_up(db, docs)]
    if switch("ANNEX", "0"):
        everyone.append(annex())
    slow = next(agent for agent in everyone if agent.id == "researcher-slow")
    os_id = text("OS_ID", "my-os")
    agno_mcp = {"mcp" if IS_V3 else "enable_mcp_server": switch("MCP", "0")}
    return AgentOS(
        id=os_id,
        name="Example AgentOS",
        description="Offline and deterministic.",
        db=db,
        agents=everyone,
        teams=teams,
        workflows=[*workflows(db, slow), *flows],
        knowledge=[docs],
        interfaces=interfaces,
        a2a_interface=extras,
        tracing=switch("TRACING", "0"),
        scheduler=switch("SCHEDULER", "0"),
        scheduler_base_url=f"http://127.0.0.1:{port}",
        internal_service_token=text("INTERNAL_TOKEN", "") or None,
        telemetry=False,
        **agno_mcp,
        **authorization(os_id),
    ).get_app()


class AnnouncingServer(uvicorn.Server):
    """Says where it listens once requests are answered."""

    def __init__(self, config: uvicorn.Config, announce: TextIO) -> None:
        super().__init__(config)
        self.announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            print(json.dumps({"listening": listener.getsockname()[1]}), file=self.announce, flush=True)


def main() -> None:
    """Binds first, so that the application knows its port even when the system chose it.

    agno logs to stdout; from here on that is stderr, so that stdout carries the JSON line alone.
    """
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    listener = socket.create_server(("127.0.0.1", int(text("PORT", "7777"))))
    app = build(listener.getsockname()[1])
    config = uvicorn.Config(app, log_level=text("LOG", "warning"), access_log=False)
    AnnouncingServer(config, announce).run(sockets=[listener])


if __name__ == "__main__":
    main()
