//! Owns the holes of scopes and tokens: callers without rights, tokens without what makes them safe.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use serde_json::json;

use super::*;

const BOTH: &[Agno] = &Agno::ALL;
const OLDEST: &[Agno] = &[Agno::Oldest];

const HOLES: &[Hole] = &[
    Hole { name: "GET /registry", open_on: OLDEST, play: |side| unmapped(side, || Ask::get("/registry")).boxed() },
    Hole { name: "GET /components", open_on: OLDEST, play: |side| unmapped(side, || Ask::get("/components")).boxed() },
    Hole { name: "POST /components", open_on: OLDEST, play: |side| create_component(side).boxed() },
    Hole {
        name: "migrate",
        open_on: OLDEST,
        play: |side| unmapped(side, || Ask::post("/databases/all/migrate")).boxed(),
    },
    Hole { name: "search traces", open_on: OLDEST, play: |side| search_traces(side).boxed() },
    Hole { name: "id that begins like a route", open_on: OLDEST, play: |side| route_word(side).boxed() },
    Hole {
        name: "continue through another agent's path",
        open_on: OLDEST,
        play: |side| continue_elsewhere(side).boxed(),
    },
    Hole { name: "schedule a run", open_on: OLDEST, play: |side| schedule(side).boxed() },
    Hole { name: "token without an end", open_on: BOTH, play: |side| forged(side, &["exp"], |_| {}).boxed() },
    Hole { name: "token of nobody", open_on: BOTH, play: |side| forged(side, &["sub"], |_| {}).boxed() },
    Hole { name: "token of any issuer", open_on: BOTH, play: |side| forged(side, &[], foreign_issuer).boxed() },
    Hole { name: "token without the word Bearer", open_on: BOTH, play: |side| bare_token(side).boxed() },
];

#[tokio::test]
async fn agno_oldest_scopes_are_enforced() {
    play(Agno::Oldest, Setup::with_jwt(Agno::Oldest, AGENTOS_KEY), HOLES).await;
}

#[tokio::test]
async fn agno_newest_scopes_are_enforced() {
    play(Agno::Newest, Setup::with_jwt(Agno::Newest, AGENTOS_KEY), HOLES).await;
}

/// The audience is not checked unless the operator says so.
#[tokio::test]
async fn agno_tokens_for_other_audiences_are_refused() {
    const HOLE: &[Hole] = &[Hole {
        name: "token for another service",
        open_on: BOTH,
        play: |side| forged(side, &[], foreign_audience).boxed(),
    }];
    for agno in Agno::ALL {
        play(agno, Setup::with_jwt(agno, AGENTOS_KEY).and("VERIFY_AUD", "0"), HOLE).await;
    }
}

/// A call that no scope was asked for; whoever runs the installation may.
async fn unmapped(side: &Side, make: impl Fn() -> Ask) -> Seen {
    let (nobody, root) = (side.send(NOBODY, make()).await, side.send(ROOT, make()).await);
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.status < 300, owner: root.status < 300, said: asked }
}

async fn create_component(side: &Side) -> Seen {
    let body =
        |name: &str| json!({ "name": name, "component_type": "agent", "config": { "name": name }, "stage": "draft" });
    let mark = if side.gateway { "g" } else { "d" };
    let nobody = side.send(NOBODY, Ask::post("/components").json(&body(&format!("planted-{mark}")))).await;
    let root = side.send(ROOT, Ask::post("/components").json(&body(&format!("meant-{mark}")))).await;
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.status < 300, owner: root.status < 300, said: asked }
}

async fn search_traces(side: &Side) -> Seen {
    let ask = || Ask::post("/traces/search").json(&json!({ "filter": null, "page": 1, "limit": 5 }));
    // A search reads the traces of everybody: at the gateway it is an OS-wide row.
    let (nobody, root) = (side.send(NOBODY, ask()).await, side.send(ROOT, ask()).await);
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.status < 300, owner: root.status < 300, said: asked }
}

/// 2.x takes `/sessions/agents…` for a route of agents and asks for no scope.
async fn route_word(side: &Side) -> Seen {
    let session = if side.gateway { "agents-of-mine-g" } else { "agents-of-mine-d" };
    side.run(NOBODY_WITH_RUNS, "assistant", "mine", session).await;
    let target = &format!("/sessions/{session}?type=agent");
    let nobody = side.send(Person { name: "runner", ..NOBODY }, Ask::get(target)).await;
    let own = side.send(NOBODY_WITH_RUNS, Ask::get(target)).await;
    let asked = format!("nobody {}; owner {}", said(&nobody), said(&own));
    Seen { open: nobody.status < 300, owner: own.status < 300, said: asked }
}

const NOBODY_WITH_RUNS: Person =
    Person { name: "runner", tenant: "acme", roles: &[], scopes: &["agents:run", "agents:read", "sessions:read"] };

/// A right to run one agent, used on the run of another.
async fn continue_elsewhere(side: &Side) -> Seen {
    let run = side.run(ALICE, "mailer", "mail carol", if side.gateway { "s-else-g" } else { "s-else-d" }).await;
    let (id, session) = (run["run_id"].as_str().unwrap(), run["session_id"].as_str().unwrap());
    let mut tools = run["tools"].clone();
    tools[0]["confirmed"] = json!(true);
    let resume = |agent: &str| {
        let ask = Ask::post(&format!("/agents/{agent}/runs/{id}/continue")).field("tools", &tools.to_string());
        ask.field("session_id", session).field("stream", "false")
    };
    let narrow = Person { name: "alice", tenant: "acme", roles: &[], scopes: &["agents:assistant:run"] };
    let elsewhere = side.send(narrow, resume("assistant")).await;
    let own = side.send(ALICE, resume("mailer")).await;
    let asked = format!("elsewhere {}; alice {}", said(&elsewhere), said(&own));
    Seen { open: elsewhere.status < 300, owner: own.status < 300 && own.text().contains("mailed"), said: asked }
}

/// Schedules run as AgentOS's own principal: a right to write schedules would be a right to run everything.
async fn schedule(side: &Side) -> Seen {
    let body = |name: &str| {
        json!({ "name": name, "cron_expr": "0 0 1 1 *", "endpoint": "/agents/assistant/runs", "method": "POST",
                "payload": { "message": "hi", "stream": "false" } })
    };
    let planner = Person { name: "planner", tenant: "acme", roles: &[], scopes: &["schedules:write"] };
    let mark = if side.gateway { "g" } else { "d" };
    let planned = side.send(planner, Ask::post("/schedules").json(&body(&format!("planted-{mark}")))).await;
    let root = side.send(ROOT, Ask::post("/schedules").json(&body(&format!("meant-{mark}")))).await;
    let asked = format!("planner {}; root {}", said(&planned), said(&root));
    Seen { open: planned.status < 300, owner: root.status < 300, said: asked }
}

fn foreign_issuer(claims: &mut Value) {
    claims["iss"] = json!("https://elsewhere.example");
}

fn foreign_audience(claims: &mut Value) {
    claims["aud"] = json!("another-service");
}

/// A token with claims left out or changed, signed with the right key.
async fn forged(side: &Side, without: &[&str], change: fn(&mut Value)) -> Seen {
    let (key, audience) = if side.gateway { (CALLER_KEY, "tollbridge") } else { (AGENTOS_KEY, "my-os") };
    // No `sub` needs an administrator on 3.x only where users are kept apart.
    let good = side.token(Person { scopes: &["agents:read"], ..ALICE }, key, audience);
    let mut claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(good.split('.').nth(1).unwrap()).unwrap()).unwrap();
    for name in without {
        claims.as_object_mut().unwrap().remove(*name);
    }
    change(&mut claims);
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(hs256(key, &message)));
    let (forged, own) =
        (side.bare(Ask::get("/agents").bearer(&signed)).await, side.bare(Ask::get("/agents").bearer(&good)).await);
    let asked = format!("forged {}; good {}", said(&forged), said(&own));
    Seen { open: forged.status < 300, owner: own.status < 300, said: asked }
}

fn hs256(key: &str, message: &str) -> Vec<u8> {
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

async fn bare_token(side: &Side) -> Seen {
    let (key, audience) = if side.gateway { (CALLER_KEY, "tollbridge") } else { (AGENTOS_KEY, "my-os") };
    let token = side.token(ALICE, key, audience);
    let bare = side.bare(Ask::get("/agents").header("authorization", &token)).await;
    let own = side.bare(Ask::get("/agents").bearer(&token)).await;
    Seen { open: bare.status < 300, owner: own.status < 300, said: format!("bare {}; own {}", said(&bare), said(&own)) }
}
