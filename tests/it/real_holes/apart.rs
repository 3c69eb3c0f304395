//! Owns the holes between tenants beyond the rows of users: knowledge, traces, learnings, sessions that two begin at
//! once, several databases.

use futures_util::FutureExt as _;
use serde_json::json;

use super::*;
use crate::stack::within;

pub(super) const HOLES: &[Hole] = &[
    hole!("reach into another tenant as an admin", NEWEST, off BOTH, isolated NEWEST, |side| admin(side).boxed()),
    hole!("tell a foreign session from an absent one", NONE, off NONE, isolated NONE, |side| oracle(side).boxed()),
    hole!("search the knowledge of others", BOTH, off BOTH, isolated NONE, |side| search(side).boxed()),
    hole!("search through an agent", BOTH, off BOTH, isolated NONE, |side| librarian(side).boxed()),
    hole!("search through a workflow", BOTH, off BOTH, isolated NONE, |side| workflow(side).boxed()),
    hole!("search through a member with filters", BOTH, off BOTH, isolated NONE, |side| team(side).boxed()),
    hole!("search through a continued run", BOTH, off BOTH, isolated NONE, |side| continued(side).boxed()),
    hole!("take over an upload of the same name", OLDEST, off OLDEST, isolated NONE, |side| same_name(side).boxed()),
    hole!("begin the session of another", NEWEST, off NEWEST, isolated NEWEST, |side| race(side).boxed()),
    hole!("read learnings", NEWEST, off NEWEST, isolated NONE, |side| read_learnings(side).boxed()),
    hole!("delete the learnings of a user", NEWEST, off NEWEST, isolated NONE, |side| delete_learnings(side).boxed()),
];

/// Traces must be recorded, which costs time. 3.x attributes none of them to a user here.
pub(super) const TRACES: &[Hole] =
    &[hole!("traces of another user", OLDEST, off NONE, isolated NONE, |side| traces(side).boxed())];

/// Rows of an agent with a database of its own.
pub(super) const DATABASES: &[Hole] = &[
    hole!("list runs in another database", BOTH, off NONE, isolated NONE, |side| list_annex_runs(side).boxed()),
    hole!("read a session in another database", BOTH, off NONE, isolated NONE, |side| read_annex_session(side).boxed()),
];

const KNOWLEDGE: &[&str] =
    &["knowledge:read", "knowledge:write", "agents:run", "agents:read", "teams:run", "workflows:run"];
/// Keeps the knowledge of alice's tenant.
const ADA: Person = Person { name: "ada", tenant: "acme", roles: &["admin"], scopes: KNOWLEDGE };
/// The same next door.
const GUS: Person = Person { name: "gus", tenant: "globex", ..ADA };

fn upload(name: &str, text: &str) -> Ask {
    Ask::post("/knowledge/content")
        .field("name", name)
        .field("text_content", text)
        .field("metadata", r#"{"kind":"faq"}"#)
}

async fn found(side: &Side, who: Person, query: &str) -> Got {
    side.send(who, Ask::post("/knowledge/search").json(&json!({ "query": query }))).await
}

/// Text that ada has uploaded and can find.
async fn known(side: &Side, secret: &str) {
    let secret = side.secret(secret);
    let got = side.send(ADA, upload(&secret, &format!("the code is {secret}"))).await;
    assert_eq!(got.status, 202, "{got:?}");
    within("an upload to be searchable", async {
        while !found(side, ADA, &secret).await.text().contains(&format!("is {secret}")) {}
    })
    .await;
}

// === impl Side ===

impl Side {
    /// A word of this side.
    fn secret(&self, word: &str) -> String {
        format!("{word}{}", if self.gateway { "gated" } else { "bare" })
    }
}

/// Every kind, since 2.x breaks over a session that it is asked for as another one. A bare AgentOS shows far more.
async fn oracle(side: &Side) -> Seen {
    let session = side.own("s-oracle");
    side.run(ALICE, "assistant", "for-nobody-else", &session).await;
    let mut told = Vec::new();
    for kind in ["agent", "team", "workflow"] {
        for id in [session.as_str(), "s-that-never-was"] {
            let got = side.send(GINA, Ask::get(&format!("/sessions/{id}?type={kind}"))).await;
            told.push((got.status, got.code()));
        }
    }
    let own = side.send(ALICE, Ask::get(&format!("/sessions/{session}"))).await;
    let open = side.gateway && told.chunks(2).any(|pair| pair[0] != pair[1]);
    Seen { open, owner: shows(&own, "for-nobody-else"), said: format!("{told:?}; alice {}", said(&own)) }
}

/// AgentOS knows one kind of admin, who sees all; a tenant's admin sees its own people.
async fn admin(side: &Side) -> Seen {
    const ADMIN: &[&str] = &["agent_os:admin"];
    let session = side.own("s-admin");
    side.run(ALICE, "assistant", "for-our-admin", &session).await;
    let read = || Ask::get(&format!("/sessions/{session}?type=agent"));
    let gus = side.send(Person { scopes: ADMIN, ..GUS }, read()).await;
    let ada = side.send(ADA, read()).await;
    let asked = format!("gus {}; ada {}", said(&gus), said(&ada));
    Seen { open: shows(&gus, "for-our-admin"), owner: shows(&ada, "for-our-admin"), said: asked }
}

async fn search(side: &Side) -> Seen {
    known(side, "alpha").await;
    let text = format!("is {}", side.secret("alpha"));
    let (gus, ada) = (found(side, GUS, "alpha").await, found(side, ADA, &side.secret("alpha")).await);
    let asked = format!("gus {}; ada {}", said(&gus), said(&ada));
    Seen { open: shows(&gus, &text), owner: shows(&ada, &text), said: asked }
}

/// A run that searches. What it finds is part of what its tool said.
async fn searching(side: &Side, path: &str, word: &str) -> (Got, Got, String) {
    known(side, word).await;
    let run = || Ask::post(&format!("{path}/runs")).field("message", &format!("find {}", side.secret(word)));
    let (gus, ada) =
        (side.send(GUS, run().field("stream", "false")).await, side.send(ADA, run().field("stream", "false")).await);
    (gus, ada, format!("is {}", side.secret(word)))
}

async fn librarian(side: &Side) -> Seen {
    let (gus, ada, text) = searching(side, "/agents/librarian", "beta").await;
    let asked = format!("gus {}; ada {}", said(&gus), said(&ada));
    Seen { open: shows(&gus, &text), owner: shows(&ada, &text), said: asked }
}

/// AgentOS takes no filter here, so nobody may run it; the agent itself is there for the rightful.
async fn refused_for_all(side: &Side, path: &str, word: &str) -> Seen {
    let (gus, ada, text) = searching(side, path, word).await;
    let (_, own, _) = searching(side, "/agents/librarian", word).await;
    let alike = !side.gateway || (gus.code() == "knowledge_shared" && ada.code() == "knowledge_shared");
    let asked = format!("gus {}; ada {}", said(&gus), said(&ada));
    Seen { open: shows(&gus, &text), owner: alike && shows(&own, &text), said: asked }
}

async fn workflow(side: &Side) -> Seen {
    refused_for_all(side, "/workflows/look-up", "gamma").await
}

async fn team(side: &Side) -> Seen {
    refused_for_all(side, "/teams/help-desk", "delta").await
}

/// 2.x forgets the filter when a run goes on; 3.x takes it anew.
async fn continued(side: &Side) -> Seen {
    known(side, "epsilon").await;
    let word = side.secret("epsilon");
    let mut told = Vec::new();
    for who in [GUS, ADA] {
        let run = side.run(who, "clerk", &format!("mail {word}"), &side.own(&format!("s-clerk-{}", who.name))).await;
        let mut tools = run["tools"].clone();
        tools[0]["confirmed"] = json!(true);
        let id = run["run_id"].as_str().unwrap();
        let ask = Ask::post(&format!("/agents/clerk/runs/{id}/continue")).field("tools", &tools.to_string());
        let ask = ask.field("session_id", run["session_id"].as_str().unwrap()).field("stream", "false");
        told.push(side.send(who, ask).await);
    }
    let text = format!("is {word}");
    let refused = told[1].code() == "knowledge_shared";
    let asked = format!("gus {}; ada {}", said(&told[0]), said(&told[1]));
    Seen { open: shows(&told[0], &text), owner: refused || shows(&told[1], &text), said: asked }
}

/// The second tenant uploads something of the same name.
async fn same_name(side: &Side) -> Seen {
    let name = side.own("s-report");
    // A bare AgentOS is told the tenant by its callers, as the gateway would.
    let mark = |tenant: &str, text: &str| {
        let ask = Ask::post("/knowledge/content").field("name", &name).field("text_content", text);
        if side.gateway { ask } else { ask.field("metadata", &json!({ "tenant": tenant }).to_string()) }
    };
    let ours = format!("zeta {}", side.secret("ours"));
    let first = side.send(ADA, mark("acme", &ours)).await;
    within("an upload to be searchable", async { while !found(side, ADA, &ours).await.text().contains(&ours) {} })
        .await;
    let second = side.send(GUS, mark("globex", "zeta theirs")).await;
    let ids = (first.json()["id"].clone(), second.json()["id"].clone());
    let (gus, ada) = (found(side, GUS, &ours).await, found(side, ADA, &ours).await);
    let taken = ids.0 == ids.1 || (side.gateway && shows(&gus, &ours));
    let own = shows(&ada, &ours) || !side.gateway;
    Seen {
        open: taken,
        owner: own && second.status == 202,
        said: format!("{ids:?}; gus {}; ada {}", said(&gus), said(&ada)),
    }
}

/// Alice and a stranger begin a session of one id at the same time.
async fn race(side: &Side) -> Seen {
    let session = side.own("s-race");
    let begin = |who: Person| {
        let ask = Ask::run("researcher-slow").field("message", &format!("secret of {}", who.name));
        let ask = ask.field("stream", "false").field("session_id", &session);
        side.send(who, side.named(who, ask))
    };
    let (alice, gina) = tokio::join!(begin(ALICE), begin(GINA));
    let mut open = false;
    for (who, other) in [(ALICE, "gina"), (GINA, "alice")] {
        let runs = Ask::get(&format!("/sessions/{session}/runs?type=agent"));
        let runs = side.send(who, runs).await;
        // Of a bare AgentOS without authorization anybody reads anything; mixed is what holds the words of both.
        let own = shows(&runs, &format!("secret of {}", who.name)) || side.gateway;
        open |= own && shows(&runs, &format!("secret of {other}"));
    }
    let one = (alice.status < 300) != (gina.status < 300);
    Seen { open, owner: one, said: format!("alice {}; gina {}", said(&alice), said(&gina)) }
}

const LEARNER: &[&str] = &["learnings:read", "learnings:write", "learnings:delete"];

/// What AgentOS 3 has learned about alice; 2.x learns nothing.
async fn learned(side: &Side, word: &str) -> bool {
    let alice = Person { scopes: LEARNER, ..ALICE };
    let body =
        json!({ "learning_type": "user_profile", "user_id": "alice", "content": { "likes": side.secret(word) } });
    side.send(alice, Ask::post("/learnings").json(&body)).await.status < 300
}

async fn read_learnings(side: &Side) -> Seen {
    let learns = learned(side, "tea").await;
    let list = || Ask::get("/learnings?user_id=alice");
    let mut open = false;
    for who in [BOB, GINA] {
        open |= shows(&side.send(Person { scopes: LEARNER, ..who }, list()).await, &side.secret("tea"));
    }
    let own = side.send(Person { scopes: LEARNER, ..ALICE }, list()).await;
    Seen { open, owner: !learns || shows(&own, &side.secret("tea")), said: format!("alice {}", said(&own)) }
}

async fn delete_learnings(side: &Side) -> Seen {
    // The profile of the case before.
    let alice = Person { scopes: LEARNER, ..ALICE };
    let before = side.send(alice, Ask::get("/learnings")).await;
    let forget = || Ask::new("DELETE", "/learnings/users/alice");
    let mut asked = Vec::new();
    for who in [BOB, GINA] {
        asked.push(said(&side.send(Person { scopes: LEARNER, ..who }, forget()).await));
    }
    let after = side.send(alice, Ask::get("/learnings")).await;
    let learns = shows(&before, &side.secret("tea"));
    let open = learns && !shows(&after, &side.secret("tea"));
    let own = side.send(alice, forget()).await;
    let gone = !shows(&side.send(alice, Ask::get("/learnings")).await, &side.secret("tea"));
    Seen { open, owner: !learns || (own.status == 204 && gone), said: format!("{asked:?}; alice {}", said(&own)) }
}

async fn traces(side: &Side) -> Seen {
    let session = side.own("s-traced");
    side.run(ALICE, "assistant", "trace me", &session).await;
    let traces = |user: &str| Ask::get(&format!("/traces?user_id={user}&limit=100"));
    let name = if side.gateway { "acme~alice" } else { "alice" };
    within("a trace", async { while !side.send(ALICE, traces(name)).await.text().contains(&session) {} }).await;
    let (open, asked) = strangers_see(side, || traces(name), &session).await;
    let own = side.send(ALICE, traces(name)).await;
    Seen { open, owner: shows(&own, &session), said: format!("{asked}; alice {}", said(&own)) }
}

async fn strangers_see(side: &Side, make: impl Fn() -> Ask, secret: &str) -> (bool, String) {
    let (bob, gina) = (side.send(BOB, make()).await, side.send(GINA, make()).await);
    (shows(&bob, secret) || shows(&gina, secret), format!("bob {}; gina {}", said(&bob), said(&gina)))
}

async fn list_annex_runs(side: &Side) -> Seen {
    let session = side.own("s-annex");
    side.run(ALICE, "annex", "annex-one", &session).await;
    // The owner goes on in a session that is there.
    side.run(ALICE, "annex", "annex-two", &session).await;
    let list = || Ask::get(&format!("/agents/annex/runs?session_id={session}"));
    let (open, asked) = strangers_see(side, list, "annex-one").await;
    let own = side.send(ALICE, list()).await;
    let owner = shows(&own, "annex-one") && shows(&own, "annex-two");
    Seen { open, owner, said: format!("{asked}; alice {}", said(&own)) }
}

async fn read_annex_session(side: &Side) -> Seen {
    let session = side.own("s-annexed");
    side.run(ALICE, "annex", "annex-three", &session).await;
    let read = || Ask::get(&format!("/sessions/{session}?type=agent&db_id=annex-db"));
    let (open, asked) = strangers_see(side, read, "annex-three").await;
    let own = side.send(ALICE, read()).await;
    Seen { open, owner: shows(&own, "annex-three"), said: format!("{asked}; alice {}", said(&own)) }
}
