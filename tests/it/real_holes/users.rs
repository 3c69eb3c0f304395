//! Owns the holes between users: bob, who has every right on his own rows, goes after alice's.

use futures_util::FutureExt as _;
use serde_json::json;

use super::*;

pub(super) const HOLES: &[Hole] = &[
    hole!("read a session", NEWEST, read_session),
    hole!("read the runs of a session", NEWEST, read_session_runs),
    hole!("list sessions of another user", NEWEST, list_sessions),
    hole!("list runs by session id", BOTH, list_runs),
    hole!("read a run by session id", BOTH, read_run),
    hole!("run inside a session", OLDEST, run_inside),
    hole!("rename a session", NEWEST, rename_session),
    hole!("change a session", NEWEST, patch_session),
    hole!("delete a session", NEWEST, delete_session),
    hole!("delete many sessions", NEWEST, delete_sessions),
    hole!("read a memory", NEWEST, read_memory),
    hole!("list memories of another user", NEWEST, list_memories),
    hole!("change a memory", BOTH, patch_memory),
    hole!("delete a memory", NEWEST, delete_memory),
    hole!("delete many memories", NEWEST, delete_memories),
    hole!("plant a memory", NEWEST, plant_memory),
    hole!("read an approval", BOTH, read_approval),
    hole!("list approvals", BOTH, list_approvals),
    hole!("decide an approval of others", BOTH, decide_approval),
    hole!("sign an approval with another name", OLDEST, spoof_resolver),
    hole!("cancel a run through another agent's path", OLDEST, cancel_elsewhere),
];

/// Bob and Gina ask; whoever of them succeeds has found the hole. Straight at AgentOS both are just users.
async fn strangers(side: &Side, make: impl Fn() -> Ask, secret: &str) -> (bool, String) {
    let (bob, gina) = (side.send(BOB, make()).await, side.send(GINA, make()).await);
    (shows(&bob, secret) || shows(&gina, secret), format!("bob {}; gina {}", said(&bob), said(&gina)))
}

/// One read: open when a stranger sees the secret, right when alice does.
async fn read(side: &Side, make: impl Fn() -> Ask, secret: &str) -> Seen {
    let (open, said) = strangers(side, &make, secret).await;
    let own = side.send(ALICE, make()).await;
    Seen { open, owner: shows(&own, secret), said: format!("{said}; alice {}", super::said(&own)) }
}

async fn read_session(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "secret-one", &side.own("s-read")).await;
    read(side, || Ask::get(&side.own("/sessions/s-read?type=agent")), "secret-one").await
}

async fn read_session_runs(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "secret-runs", &side.own("s-runs")).await;
    read(side, || Ask::get(&side.own("/sessions/s-runs/runs?type=agent")), "secret-runs").await
}

async fn list_sessions(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "secret-list", &side.own("s-list")).await;
    let user = if side.gateway { "acme~alice" } else { "alice" };
    let target = format!("/sessions?type=agent&user_id={user}");
    let (open, said) = strangers(side, || Ask::get(&target), &side.own("s-list")).await;
    let own = side.send(ALICE, Ask::get("/sessions?type=agent")).await;
    Seen { open, owner: shows(&own, &side.own("s-list")), said: format!("{said}; alice {}", super::said(&own)) }
}

async fn list_runs(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "secret-two", &side.own("s-list-runs")).await;
    read(side, || Ask::get(&side.own("/agents/assistant/runs?session_id=s-list-runs")), "secret-two").await
}

async fn read_run(side: &Side) -> Seen {
    let run = side.run(ALICE, "assistant", "secret-three", &side.own("s-run")).await;
    let target = format!("/agents/assistant/runs/{}?session_id={}", run["run_id"].as_str().unwrap(), side.own("s-run"));
    read(side, || Ask::get(&target), "secret-three").await
}

async fn run_inside(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "first", &side.own("s-inside")).await;
    let intrude = || {
        let ask = Ask::run("assistant").field("message", "intruded").field("stream", "false");
        side.named(ALICE, ask.field("session_id", &side.own("s-inside")))
    };
    let (open, said) = strangers(side, intrude, "intruded").await;
    let own = side.send(ALICE, intrude()).await;
    Seen { open, owner: shows(&own, "intruded"), said: format!("{said}; alice {}", super::said(&own)) }
}

/// A change by a stranger shows in what alice reads afterwards; her own change works.
async fn change(side: &Side, make: impl Fn(&str) -> Ask, look: impl Fn() -> Ask) -> Seen {
    let mut asked = Vec::new();
    for who in [BOB, GINA] {
        asked.push(said(&side.send(who, make("defaced")).await));
    }
    let after = side.send(ALICE, look()).await;
    let own = side.send(ALICE, make("improved")).await;
    let owner = own.status < 300 && shows(&side.send(ALICE, look()).await, "improved");
    Seen {
        open: shows(&after, "defaced"),
        owner,
        said: format!("{asked:?}; alice {}; then {}", said(&after), said(&own)),
    }
}

async fn rename_session(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "hi", &side.own("s-rename")).await;
    let rename = |name: &str| {
        Ask::post(&side.own("/sessions/s-rename/rename?type=agent")).json(&json!({ "session_name": name }))
    };
    change(side, rename, || Ask::get(&side.own("/sessions/s-rename?type=agent"))).await
}

async fn patch_session(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "hi", &side.own("s-patch")).await;
    let patch = |name: &str| {
        Ask::new("PATCH", &side.own("/sessions/s-patch?type=agent")).json(&json!({ "session_name": name }))
    };
    change(side, patch, || Ask::get(&side.own("/sessions/s-patch?type=agent"))).await
}

/// Strangers delete; alice must still see it, until she deletes it herself.
async fn delete(side: &Side, make: impl Fn() -> Ask, look: impl Fn() -> Ask, secret: &str) -> Seen {
    let mut asked = Vec::new();
    for who in [BOB, GINA] {
        asked.push(said(&side.send(who, make()).await));
    }
    let after = side.send(ALICE, look()).await;
    let own = side.send(ALICE, make()).await;
    let gone = !shows(&side.send(ALICE, look()).await, secret);
    Seen {
        open: !shows(&after, secret),
        owner: own.status < 300 && gone,
        said: format!("{asked:?}; alice {}", said(&own)),
    }
}

async fn delete_session(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "keep-me", &side.own("s-delete")).await;
    let look = || Ask::get(&side.own("/sessions/s-delete?type=agent"));
    delete(side, || Ask::new("DELETE", &side.own("/sessions/s-delete")), look, "keep-me").await
}

async fn delete_sessions(side: &Side) -> Seen {
    side.run(ALICE, "assistant", "keep-us", &side.own("s-many")).await;
    let body = json!({ "session_ids": [side.own("s-many")], "session_types": ["agent"] });
    let many = || Ask::new("DELETE", "/sessions").json(&body);
    delete(side, many, || Ask::get(&side.own("/sessions/s-many?type=agent")), "keep-us").await
}

/// A memory of alice's; gives its id.
async fn remember(side: &Side, text: &str) -> String {
    // 3.x wants the user's id in the body, though it knows it.
    let user = if side.gateway { "acme~alice" } else { "alice" };
    let body = json!({ "memory": text, "user_id": user, "topics": ["secrets"] });
    let got = side.send(ALICE, Ask::post("/memories").json(&body)).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.json()["memory_id"].as_str().unwrap().to_owned()
}

async fn read_memory(side: &Side) -> Seen {
    let target = format!("/memories/{}", remember(side, "likes tea").await);
    read(side, || Ask::get(&target), "likes tea").await
}

async fn list_memories(side: &Side) -> Seen {
    remember(side, "likes jazz").await;
    let user = if side.gateway { "acme~alice" } else { "alice" };
    let (open, said) = strangers(side, || Ask::get(&format!("/memories?user_id={user}")), "likes jazz").await;
    let own = side.send(ALICE, Ask::get("/memories")).await;
    Seen { open, owner: shows(&own, "likes jazz"), said }
}

async fn patch_memory(side: &Side) -> Seen {
    let target = format!("/memories/{}", remember(side, "likes chess").await);
    let user = if side.gateway { "acme~alice" } else { "alice" };
    let patch = |text: &str| {
        let body = json!({ "memory": text, "user_id": user, "topics": ["secrets"] });
        Ask::new("PATCH", &target).json(&body)
    };
    change(side, patch, || Ask::get(&target)).await
}

async fn delete_memory(side: &Side) -> Seen {
    let target = format!("/memories/{}", remember(side, "likes cats").await);
    delete(side, || Ask::new("DELETE", &target), || Ask::get(&target), "likes cats").await
}

async fn delete_memories(side: &Side) -> Seen {
    let id = remember(side, "likes dogs").await;
    // 3.x wants a user's id, and deletes what is named whoever it is.
    let user = if side.gateway { "acme~alice" } else { "alice" };
    let body = json!({ "memory_ids": [id], "user_id": user });
    let many = || Ask::new("DELETE", "/memories").json(&body);
    delete(side, many, || Ask::get(&format!("/memories/{id}")), "likes dogs").await
}

async fn plant_memory(side: &Side) -> Seen {
    let text = if side.gateway { "owes bob money" } else { "owes bob a favour" };
    let mut asked = Vec::new();
    for user in ["alice", "acme~alice"] {
        let body = json!({ "memory": text, "user_id": user, "topics": [] });
        asked.push(said(&side.send(BOB, Ask::post("/memories").json(&body)).await));
    }
    let own = side.send(ALICE, Ask::get("/memories?limit=100")).await;
    Seen { open: shows(&own, text), owner: own.status == 200, said: format!("{asked:?}") }
}

/// A paused run of alice's that waits for an approval; gives the approval's id.
async fn ask_approval(side: &Side, session: &str) -> String {
    let run = side.run(ALICE, "records", "delete record 4711", session).await;
    let id = run["tools"][0]["approval_id"].as_str().map(str::to_owned);
    id.unwrap_or_else(|| panic!("no approval in {run}"))
}

/// Strangers read it; whoever decides sees it.
async fn approval(side: &Side, target: &str, secret: &str) -> Seen {
    let (open, asked) = strangers(side, || Ask::get(target), secret).await;
    let own = side.send(ADAM, Ask::get(target)).await;
    Seen { open, owner: shows(&own, secret), said: format!("{asked}; adam {}", said(&own)) }
}

async fn read_approval(side: &Side) -> Seen {
    let id = ask_approval(side, &side.own("s-approval")).await;
    let mut seen = approval_without_scopes(side, &format!("/approvals/{id}"), "4711").await;
    let own = side.send(ADAM, Ask::get(&format!("/approvals/{id}"))).await;
    seen.owner = shows(&own, "4711");
    seen
}

/// At the gateway a scope on approvals makes an approver; the strangers here are plain operators.
async fn approval_without_scopes(side: &Side, target: &str, secret: &str) -> Seen {
    if !side.gateway {
        return approval(side, target, secret).await;
    }
    const PLAIN: &[&str] = &["agents:read", "agents:run"];
    let bob = side.send(Person { scopes: PLAIN, ..BOB }, Ask::get(target)).await;
    // Of another tenant, not even an approver.
    let gina = side.send(Person { roles: &["approver", "admin"], ..GINA }, Ask::get(target)).await;
    let open = shows(&bob, secret) || shows(&gina, secret);
    Seen { open, owner: true, said: format!("bob {}; gina {}", said(&bob), said(&gina)) }
}

async fn list_approvals(side: &Side) -> Seen {
    let id = ask_approval(side, &side.own("s-approvals")).await;
    let mut seen = approval_without_scopes(side, "/approvals?limit=100", &id).await;
    let own = side.send(ADAM, Ask::get("/approvals?limit=100")).await;
    (seen.owner, seen.said) = (shows(&own, &id), format!("{}; adam {}", seen.said, said(&own)));
    seen
}

/// Whoever may decide approvals decides those of every tenant.
async fn decide_approval(side: &Side) -> Seen {
    let id = ask_approval(side, &side.own("s-decide")).await;
    let decide = || Ask::post(&format!("/approvals/{id}/resolve")).json(&json!({ "status": "approved" }));
    let gina = Person { roles: &["approver", "admin"], scopes: ADAM.scopes, ..GINA };
    let decided = side.send(gina, decide()).await;
    let open = decided.status < 300;
    let own = if open { decided.clone() } else { side.send(ADAM, decide()).await };
    Seen { open, owner: own.status < 300, said: format!("gina {}; adam {}", said(&decided), said(&own)) }
}

async fn spoof_resolver(side: &Side) -> Seen {
    let id = ask_approval(side, &side.own("s-spoof")).await;
    let body = json!({ "status": "rejected", "resolved_by": "SPOOFED" });
    let resolved = side.send(ADAM, Ask::post(&format!("/approvals/{id}/resolve")).json(&body)).await;
    let plain = json!({ "status": "rejected" });
    let again = side.send(ADAM, Ask::post(&format!("/approvals/{id}/resolve")).json(&plain)).await;
    let row = side.send(ADAM, Ask::get(&format!("/approvals/{id}"))).await;
    let rejected = row.status == 200 && row.json()["status"] == "rejected" && row.json()["resolved_by"] != "SPOOFED";
    let asked = format!("{}; {}; {}", said(&resolved), said(&again), row.json()["resolved_by"]);
    Seen { open: shows(&row, "SPOOFED"), owner: rejected, said: asked }
}

async fn cancel_elsewhere(side: &Side) -> Seen {
    let run = side.run(ALICE, "records", "delete record 1", &side.own("s-cancel")).await;
    let id = run["run_id"].as_str().unwrap();
    let target = |agent: &str| format!("/agents/{agent}/runs/{id}/cancel");
    let mut asked = Vec::new();
    for who in [BOB, GINA] {
        asked.push(side.send(who, Ask::post(&target("assistant"))).await);
    }
    // With user isolation AgentOS wants the session too.
    let own = side.send(ALICE, Ask::post(&format!("{}?session_id={}", target("records"), side.own("s-cancel")))).await;
    let said = format!("{:?}; alice {}", asked.iter().map(said).collect::<Vec<_>>(), said(&own));
    Seen { open: asked.iter().any(|got| got.status < 300), owner: own.status < 300, said }
}
